"""Two classes whose conditional distributions are known, and the network that is best for them."""

import torch
from helpers.known_data import TWO, Mixture
from torch import Tensor

from lightning_ddpm.diffusion import (
    Denoiser,
    Linear,
)

SCHEDULE = Linear(1000)

PARTS = [
    Mixture([1.0], [mean.tolist()], [covariance.tolist()])
    for mean, covariance in zip(TWO.means, TWO.covariances, strict=True)
]
"""Each of the two Gaussians alone: the data given y."""


def told(x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    """The best network that is told classes; -1, or nothing, for both."""
    label = torch.full_like(t, -1) if label is None else label
    answers = torch.stack([data.eps(SCHEDULE, x_t, t) for data in (*PARTS, TWO)])
    return answers[label % 3, torch.arange(len(x_t))]


CONDITIONAL = Denoiser(told, SCHEDULE, clip=None)
