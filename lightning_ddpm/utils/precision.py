"""The arithmetic of float32 on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FLOAT32 = "float32 without TF32"
"""What :func:`compute_exactly` computes in, for keys of cached results."""


@contextmanager
def compute_exactly() -> Iterator[None]:
    """Compute products of float32 values in float32 inside the context; restore the settings afterwards.

    By default convolutions on recent GPUs round their inputs to TF32, with 10 bits of precision, and so do matrix
    products where ``torch.set_float32_matmul_precision`` allows it. It changes Inception's features by 0.2 per cent.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
