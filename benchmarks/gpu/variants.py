"""The variants that :mod:`benchmarks.gpu.first_day` measures: each is a name and a function that returns numbers."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.compile import begin_step, compile_in_place

Variants = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
TINY = {"size": 8, "width": 8, "multipliers": (1,), "attention": (8,), "blocks": 1, "groups": 4}
HO = {"size": 32, "width": 128, "multipliers": (1, 2, 2, 2), "attention": (16,), "blocks": 2, "groups": 32}
CHOICES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": ("bf16",),
    "tf32": ("tf32",),
    "bf16, channels_last": ("bf16", "channels_last"),
    "bf16, channels_last, static": ("bf16", "channels_last", "static"),
    "bf16, channels_last, graphs": ("bf16", "channels_last", "graphs"),
    "bf16, channels_last, compile": ("bf16", "channels_last", "compile"),
}
"""Training by name; ``static`` and ``graphs`` compile as the callback does, ``compile`` leaves all sizes open."""
COMPILED = {"compile", "static", "graphs"}


@dataclass(frozen=True)
class Trial:
    """What is measured where.

    Attributes:
        device: the GPU, or the CPU to try the program.
        tiny: measure tiny models.
        data: folder of CIFAR-10.
        weights_path: Inception's weights.
        seconds: time for training with an FID curve.
    """

    device: torch.device
    tiny: bool = False
    data: Path | None = None
    weights_path: Path | None = None
    seconds: float = 0.0


def build_model(trial: Trial) -> DDPM:
    """Build Ho et al.'s model of CIFAR-10, or a tiny one; no layer begins at zero, so that all have an effect."""
    torch.manual_seed(0)
    network = UNet(channels=3, **(TINY if trial.tiny else HO))
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.xavier_uniform_(parameter)
    return DDPM(network, Linear(1000), DDIM(2 if trial.tiny else 50)).to(trial.device)


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_training(trial: Trial) -> Variants:
    """Yield a training step in every variant, at two batch sizes; those that take minutes to compile come last."""
    sizes = (4,) if trial.tiny else (128, 16)
    for n in sizes:
        for name, choices in CHOICES.items():
            if not COMPILED & {*choices}:
                yield f"{name}, batch {n}", partial(time_steps, trial, n, choices)
        yield f"diffusers' loop, bf16, batch {n}", partial(time_diffusers, trial, n)
    for n in sizes:
        for name, choices in CHOICES.items():
            if COMPILED & {*choices}:
                yield f"{name}, batch {n}", partial(time_steps, trial, n, choices)


def compile_network(network: UNet, choice: str, tiny: bool) -> None:
    """Compile a network: for any size (``compile``), or as the callback does, for the batch's size."""
    torch.compiler.reset()  # type: ignore[no-untyped-call]  # what was compiled before decides which sizes are open
    backend = "eager" if tiny else "inductor"
    if choice == "compile":
        network.compile(backend=backend, dynamic=True)
    else:
        compile_in_place(network, backend, "reduce-overhead" if choice == "graphs" and not tiny else None)


def time_steps(trial: Trial, n: int, choices: tuple[str, ...]) -> dict[str, Any]:
    """Return the milliseconds of each step, those until it is issued, and the peak memory in GB."""
    device, tiny = trial.device, trial.tiny
    torch.set_float32_matmul_precision("high" if "tf32" in choices else "highest")
    torch.backends.cudnn.allow_tf32 = "tf32" in choices or "bf16" in choices
    model = build_model(trial).train()
    if "channels_last" in choices:
        model.network.to(memory_format=torch.channels_last)
    for choice in COMPILED & {*choices}:
        assert isinstance(model.network, UNet)
        compile_network(model.network, choice, tiny)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    x_0 = torch.rand(n, *model.image_shape, device=device) * 2 - 1

    def step() -> None:
        if "graphs" in choices:
            begin_step()
        t = torch.randint(1, 1001, (n,), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in choices):
            loss = model.loss(x_0, t, torch.randn_like(x_0)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    issued, whole = list[float](), list[float]()
    for _ in range(3 if tiny else 20):
        wait(device)
        started = time.perf_counter()
        step()
        issued.append(1000 * (time.perf_counter() - started))
        wait(device)
        whole.append(1000 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    rate = 1000 * n / statistics.median(whole)
    numbers = {"ms": whole, "ms to issue": issued, "images/s": rate, "peak GB": peak}
    return numbers | (count_kernels(step) if device.type == "cuda" else {})


def time_diffusers(trial: Trial, n: int) -> dict[str, Any]:
    """Return the milliseconds of each step of diffusers' own loop with the same network."""
    from benchmarks.loops import make_diffusers_loop  # diffusers may be missing

    device, model = trial.device, build_model(trial)
    x_0 = torch.rand(n, *model.image_shape, device=device) * 2 - 1
    block = make_diffusers_loop(model, itertools.repeat((x_0, x_0)), "bf16-mixed")
    block(3)
    whole = list[float]()
    for _ in range(3 if trial.tiny else 20):
        wait(device)
        started = time.perf_counter()
        block(1)
        wait(device)
        whole.append(1000 * (time.perf_counter() - started))
    return {"ms": whole, "images/s": 1000 * n / statistics.median(whole)}


def count_kernels(step: Callable[[], None]) -> dict[str, Any]:
    """Return the number of kernels of a step, of those that change layouts, and the names of those of attention."""
    with torch.profiler.profile() as profiler:
        step()
        torch.cuda.synchronize()
    names = [each.name for each in profiler.events() if str(each.device_type).endswith("CUDA")]
    layouts = [name for name in names if "nchwToNhwc" in name or "nhwcToNchw" in name]
    attention = {name for name in names if any(word in name.lower() for word in ("flash", "fmha", "attention", "sdpa"))}
    return {"kernels": len(names), "layout kernels": len(layouts), "attention": sorted(attention)}


def measure_sampling(trial: Trial) -> Variants:
    """Yield DDIM at several batch sizes, with the gray levels by which images differ from those of smaller batches."""
    model = build_model(trial).eval()
    sizes = (1, 2, 4) if trial.tiny else (1, 64, 256)
    found: dict[int, Tensor] = {}

    @torch.inference_mode()
    def sample(n: int) -> dict[str, Any]:
        model.generate(SampleRequest(n=n, seed=0, sampler=DDIM(2)), 0, n)  # chooses the kernels
        wait(trial.device)
        started = time.perf_counter()
        images = model.generate(SampleRequest(n=n, seed=0), 0, n).cpu()
        seconds = time.perf_counter() - started
        levels = {
            f"images of batch {size}": int((images[:size].int() - smaller.int()).abs().max())
            for size, smaller in found.items()
        }
        found[n] = images
        return {"seconds": seconds, "images/s": n / seconds, "largest difference in gray levels": levels}

    for n in sizes:
        yield f"batch {n}", partial(sample, n)


def measure_eigenvalues(trial: Trial) -> Variants:
    """Yield the eigenvalues of a covariance of Inception's features, on the device and on the CPU."""
    size = 64 if trial.tiny else 2048
    features = torch.randn(2 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = features.T @ features / len(features)

    def solve(where: torch.device) -> dict[str, Any]:
        matrix = covariance.to(where)
        wait(where)
        started = time.perf_counter()
        total = torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt().sum().item()
        return {"seconds": time.perf_counter() - started, "sum of roots": total}

    for name, where in (("device", trial.device), ("CPU", torch.device("cpu"))):
        yield name, partial(solve, where)
