"""Networks, in torch and einops."""

from lightning_ddpm.networks.cnn import SmallCNN
from lightning_ddpm.networks.encoder import UNetEncoder
from lightning_ddpm.networks.unet import UNet

__all__ = ["SmallCNN", "UNet", "UNetEncoder"]
