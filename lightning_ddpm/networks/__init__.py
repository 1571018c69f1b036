"""Networks in torch and einops: Ho et al.'s U-Net with variants, its encoder as a classifier, a small classifier.

Each line exports one name that a config or another folder uses, and shows the file that documents it.
"""

from lightning_ddpm.networks.cnn import SmallCNN as SmallCNN
from lightning_ddpm.networks.dit import DiT as DiT
from lightning_ddpm.networks.encoder import UNetEncoder as UNetEncoder
from lightning_ddpm.networks.unet import UNet as UNet
from lightning_ddpm.networks.unet_layers import UNetLayers as UNetLayers
