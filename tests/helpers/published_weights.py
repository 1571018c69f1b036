"""Weights that a formula gives, and outputs that published code computes from them: U-Nets of other authors."""

import math
import zlib

import torch
from torch import Tensor


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return numbers that depend on the name and the shape alone; vectors are those of norms and biases."""
    n, k = torch.arange(math.prod(shape)), zlib.crc32(name.encode()) % 1000
    wave = ((7 * n * n + k * n) % 1000003).double().view(shape) / 1000003 * 2 - 1
    if len(shape) == 1:
        return (0.5 * wave + (1.0 if name.endswith("weight") else 0.0)).float()
    return (wave * math.sqrt(4 / math.prod(shape[1:]))).float()


X_T = 2 * fill("x", (2, 3, 16, 16)) * math.sqrt(3 * 256 / 4)
T = torch.tensor([3, 700])
LABEL = torch.tensor([2, 0])

GUIDED_DIFFUSION = {
    "adm": [
        0.86095,
        2.43969,
        -0.21874,
        -1.3326,
        -0.363,
        -1.01884,
        -0.19566,
        -0.23689,
        1.22082,
        0.9944,
        -0.11639,
        -0.27297,
        -0.71079,
        -0.82042,
        -0.55102,
        -0.31201,
    ],
    "legacy": [
        1.14336,
        2.09155,
        -0.51181,
        -0.70496,
        -0.46994,
        -1.03918,
        -0.13471,
        -0.58741,
        1.8445,
        1.48479,
        -0.58632,
        -0.30911,
        -0.92191,
        -0.90031,
        -0.62757,
        -0.80341,
    ],
}
"""Every 193rd number that guided-diffusion (openai/guided-diffusion, commit 22e0df8) computes at t - 1.

``adm`` is its UNetModel(16, 3, 32, 6, 2, (1, 2), 0, (1, 2), num_classes=4, num_head_channels=16,
use_scale_shift_norm=True, resblock_updown=True, use_new_attention_order=True), and
``legacy`` is UNetModel(16, 3, 32, 6, 2,
(1, 2), 0, (1, 2), num_heads=4, use_scale_shift_norm=True).
"""

DDPMPP = [
    -0.1513,
    -0.70277,
    0.99557,
    -0.08006,
    -0.52096,
    -0.74621,
    0.0103,
    -0.49996,
    0.22265,
    1.21741,
    -0.11205,
    -0.71778,
    -0.70926,
    -0.76019,
    -0.50074,
    -0.38084,
]
"""Every 97th number of SongUNet(16, 3, 3, model_channels=128, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[8],
dropout=0) of NVlabs/edm, commit 008a4e5, for noise labels t - 1."""

DIT = [2.74808, -0.53531, -1.89593, -2.07195, 1.47605, -3.88442, -0.35727, -2.4277]
DIT += [1.4881, -0.65559, -1.96124, -1.65364, 1.05244, -2.3568, -0.62279, -1.90635]
"""Every 193rd number of DiT(input_size=16, patch_size=4, in_channels=3, hidden_size=32, depth=2, num_heads=4,
num_classes=4) of facebookresearch/DiT at t - 1."""

JIT = [5.42965, 3.97883, -0.4178, -0.58211, 3.43368, -1.81398, -3.95215, 0.49155]
JIT += [0.78412, 1.96918, -0.84249, -1.76185, 2.04196, -1.9787, -2.61502, 0.77322]
"""Every 97th number of JiT(input_size=16, patch_size=4, in_channels=3, hidden_size=32, depth=3, num_heads=4,
num_classes=4, bottleneck_dim=8, in_context_len=5, in_context_start=1) of LTH14/JiT at t - 1."""
