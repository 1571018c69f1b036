"""Networks, in torch and einops."""

from lightning_ddpm.networks.convnet import ConvNet
from lightning_ddpm.networks.half_unet import HalfUNet
from lightning_ddpm.networks.unet import UNet

__all__ = ["ConvNet", "HalfUNet", "UNet"]
