"""How near images are to their originals: PSNR and SSIM, by torchmetrics."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lightning_ddpm.utils.errors import UserError

SMALLEST = 6
"""Shortest side of images for SSIM, whose window of 11x11 pixels is reflected at their edges."""


def check_sides(height: int, width: int) -> None:
    """Raise UserError for images that SSIM's window does not fit."""
    if min(height, width) < SMALLEST:
        raise UserError(
            f"SSIM needs images of at least {SMALLEST}x{SMALLEST} pixels, and these have {height}x{width}; compare "
            "larger ones, or leave PSNR and SSIM out"
        )


def measure_pairs(images: Tensor, originals: Tensor, data_range: float = 255.0) -> Tensor:
    """Return PSNR in dB and SSIM of each image, (b, 2) float64; the PSNR of an exact one is infinite.

    Args:
        images, originals: (b, c, h, w).
        data_range: greatest difference of two values.

    Raises:
        UserError: the images are too small for SSIM.
    """
    check_sides(*images.shape[2:])
    a, b = images.double(), originals.double()
    psnr = peak_signal_noise_ratio(a, b, data_range=data_range, dim=(1, 2, 3), reduction="none")
    ssim = structural_similarity_index_measure(a, b, data_range=data_range, reduction="none")
    return torch.stack([psnr, torch.as_tensor(ssim).reshape(-1)], dim=1)
