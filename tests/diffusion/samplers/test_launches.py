"""Kernels of a sampling step on a GPU, besides the network's: those that work on images, and none for coefficients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.fake_gpu import GPU, fake_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ddpm.diffusion import (
    DDIM,
    Ancestral,
    Cosine,
    Denoiser,
    DPMSolverPP,
    Epsilon,
    EulerMaruyama,
    FixedLarge,
    FixedSmall,
    Heun,
    Sampler,
)
from lightning_ddpm.utils.random import ImageNoise

VIEWS = {"select", "slice", "split", "view", "expand", "reshape", "detach", "alias", "split_with_sizes", "_unsafe_view"}
ALLOCATIONS = {"empty", "empty_like"}


class Launches(TorchDispatchMode):
    """Lists the operations that start a kernel on the fake GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        tensors = result if isinstance(result, tuple | list) else [result]
        on_gpu = any(isinstance(each, Tensor) and each.is_cuda for each in tensors)
        if on_gpu and name not in VIEWS | ALLOCATIONS:
            self.names.append(name)
        return result


@contextmanager
def count_launches() -> Iterator[list[str]]:
    with Launches() as launches:
        yield launches.names


def network(x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    """Predict without a kernel."""
    return x_t


def launches_of_a_step(sampler: Sampler, denoise: Denoiser, batch: int = 16) -> float:
    """Return the kernels of an average step from x_T to x_0, without those of the first."""
    x_T, noise = torch.empty(batch, 1, 8, 8, device=GPU), ImageNoise(0, 0, batch)
    chain = sampler.trajectory(denoise, x_T, noise)
    next(chain)
    with count_launches() as names:
        steps = sum(1 for _ in chain)
    return len(names) / steps


@pytest.mark.parametrize(
    ("sampler", "most"),
    [  # in the comments: with coefficients that are computed on the GPU
        (DDIM(10, eta=1.0), 14),  # 34.4
        (Ancestral(FixedSmall(), 10), 14),  # 39.7
        (Ancestral(FixedLarge(), 10), 14),  # 36.1
        (DPMSolverPP(10), 14),  # 33.3
        (DPMSolverPP(10, eta=1.0), 17),  # 41.3
        (Heun(10), 25),  # 37.8
        (EulerMaruyama(10), 17),  # 27.3
    ],
    ids=repr,
)
def test_a_step_starts_kernels_for_images_only(sampler: Sampler, most: float) -> None:
    schedule = Cosine(steps=20)
    Epsilon().check_schedule(schedule)  # once, where the model is built
    with fake_gpu():
        denoise = Denoiser(network, schedule.to(GPU))
        assert launches_of_a_step(sampler, denoise) <= most
