"""Measures whether this machine computes faster in bfloat16 than in float32."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SECONDS = 0.5
ROUNDS = 5
"""The least number of measurements."""
HOPELESS = 0.1
"""A ratio of a small step below which the full one is not measured: on some processors bfloat16 takes minutes."""


class Shape(NamedTuple):
    """The activations of the measured step."""

    batch: int
    channels: int
    size: int


SHAPES = {"cpu": Shape(2, 128, 16), "cuda": Shape(64, 128, 32)}
"""A level of a small U-Net, and one of configs/cifar10.yaml's: a GPU would take as long to start a smaller one."""


def measure_bf16_speedup(device: torch.device, seconds: float = SECONDS) -> float:
    """Measure how many times as fast as in float32 a training step is under autocast to bfloat16.

    The step is a forward and a backward pass through a residual block with attention: two 3x3 convolutions with
    GroupNorm and SiLU, and the attention's matrix products. Both precisions alternate, and the fastest step of each
    counts, because whatever else the machine does only adds time. No global random numbers are used.

    Args:
        device: a CPU or a CUDA GPU.
        seconds: time to measure after the warm-up.

    Returns:
        float32's time divided by bfloat16's.
    """
    full = SHAPES[device.type]
    ratio = _compare(_make_step(device, full._replace(batch=1)), device, 0)
    return ratio if ratio < HOPELESS else _compare(_make_step(device, full), device, seconds)


def _compare(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Return the ratio of the fastest steps within some seconds, after one of each precision that loads the kernels."""
    _time(step, device, False), _time(step, device, True)
    times: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(times) < ROUNDS or time.perf_counter() - started < seconds:
        times.append((_time(step, device, False), _time(step, device, True)))
    return min(full for full, _ in times) / min(half for _, half in times)


def _make_step(device: torch.device, shape: Shape) -> Callable[[], None]:
    """Return a function that runs the forward and the backward pass."""
    batch, channels, size = shape
    generator = torch.Generator().manual_seed(0)

    def randn(*dimensions: int, fan_in: int = 1) -> Tensor:
        values: Tensor = torch.randn(dimensions, generator=generator) / fan_in**0.5
        return values.to(device).requires_grad_()

    x = randn(batch, channels, size, size)
    kernels = [randn(channels, channels, 3, 3, fan_in=9 * channels) for _ in range(2)]
    project = randn(3 * channels, channels, fan_in=channels)

    def run() -> None:
        h = x
        for kernel in kernels:
            h = functional.conv2d(functional.silu(functional.group_norm(h, 8)), kernel, padding=1)
        h = h + x
        q, k, v = functional.linear(h.flatten(2).transpose(1, 2), project).chunk(3, dim=-1)
        loss: Tensor = functional.scaled_dot_product_attention(q, k, v).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        for each in (x, project, *kernels):
            each.grad = None

    return run


def _time(step: Callable[[], None], device: torch.device, half: bool) -> float:
    """Return the seconds of one step."""
    _synchronize(device)
    started = time.perf_counter()
    with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        step()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
