"""Networks in torch and einops: Ho et al.'s U-Net, its encoder as a classifier, and a small classifier."""

from lightning_ddpm.networks.cnn import SmallCNN
from lightning_ddpm.networks.encoder import UNetEncoder
from lightning_ddpm.networks.unet import UNet

__all__ = ["SmallCNN", "UNet", "UNetEncoder"]
