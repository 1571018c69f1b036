"""How near images are to their originals: PSNR and SSIM, by torchmetrics."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def measure_pairs(images: Tensor, originals: Tensor, data_range: float = 255.0) -> Tensor:
    """Return PSNR in dB and SSIM of each image, (b, 2) float64; the PSNR of an exact one is infinite.

    Args:
        images, originals: (b, c, h, w).
        data_range: greatest difference of two values.
    """
    a, b = images.double(), originals.double()
    psnr = peak_signal_noise_ratio(a, b, data_range=data_range, dim=(1, 2, 3), reduction="none")
    ssim = structural_similarity_index_measure(a, b, data_range=data_range, reduction="none")
    return torch.stack([psnr, torch.as_tensor(ssim).reshape(-1)], dim=1)
