"""Times a training step of ``fit`` and, in its pauses, the same step of other implementations.

The whole program runs, with EMA, logging and clipping. A callback stops the clock after every few steps and lets the
other contenders take as many, so that all are measured in turn, on the same data and, where the network is the same,
from the same weights.
"""

import copy
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.models import SHAPES, autocast, build_diffusers_unet, describe_variant, get_network_arguments
from benchmarks.report import alternate_order, measure_in_subprocess, synchronize, write_result
from lightning_ddpm.data.image_io import save_image, to_float
from lightning_ddpm.models.ddpm import DDPM

IMAGES = 2048
OURS, FLOOR, DIFFUSERS, PYTORCH = "fit", "bare loop", "diffusers", "denoising-diffusion-pytorch"
Block = Callable[[int], None]


def run(options: Namespace) -> None:
    """Measure the memory of each contender in a process of its own, then run fit with the callback of this module."""
    size, channels, default = SHAPES[options.config]
    batch_size = options.batch_size or default
    steps = 1 if options.config == "cifar10" else 3
    with tempfile.TemporaryDirectory() as folder:
        images = write_noise_images(Path(folder), IMAGES, channels, size)
        others = [FLOOR, DIFFUSERS, *([PYTORCH] if batch_size >= 16 else [])]  # its minimum
        where = {"config": options.config, "images": str(images), "batch_size": batch_size}
        where |= {"precision": options.precision, "callbacks": list_callbacks(options)}
        peaks = {who: [measure_in_subprocess("step", who=who, **where)["megabytes"]] for who in (OURS, *others)}
        settings = {"rounds": options.rounds, "steps": steps, "images": str(images), "others": others}
        settings |= {
            "out": str(options.out),
            "name": f"{options.config}{describe_variant(options)}",
            "megabytes": peaks,
        }
        turns = {"class_path": "benchmarks.training.TurnsCallback", "init_args": settings}
        fit_images(callback=turns, **where | {"images": images})


def list_callbacks(options: Namespace) -> list[str]:
    """Return the callbacks that the options request."""
    requested = {
        "lightning_ddpm.callbacks.ChannelsLast": options.channels_last,
        "lightning_ddpm.callbacks.Compile": options.compile,
    }
    return [name for name, on in requested.items() if on]


def fit_images(
    config: str,
    images: Path,
    batch_size: int,
    callback: dict[str, Any],
    steps: int = 10**6,
    size: int | None = None,
    precision: str = "32-true",
    callbacks: Sequence[str] = (),
) -> None:
    """Run the program's own fit, with EMA, clipping, logging and these callbacks, in a temporary folder."""
    settings = models.read_config(config)
    kept = [each for each in settings["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Checkpoints"))]
    for each in kept:
        each["init_args"].pop("monitor", None)
    added = [{"class_path": each} for each in callbacks]
    settings["trainer"].update(
        callbacks=[*added, *kept, callback], precision=precision, limit_val_batches=0, max_steps=steps
    )
    arguments = get_network_arguments(config, size)
    shape = {name: arguments[name] for name in ("channels", "size")}
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": shape}
    settings["model"]["init_args"]["network"]["init_args"] = arguments
    settings["data"] = {"source": source, "root": str(images), "batch_size": batch_size, "num_workers": 0}
    with tempfile.TemporaryDirectory() as folder:
        models.run_fit(settings, Path(folder))


def write_noise_images(folder: Path, n: int, channels: int, size: int) -> Path:
    """Write n images of noise into a new folder and return it."""
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(n):
        noise = torch.Generator().manual_seed(index)
        save_image(
            torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=noise), images / f"{index}.png"
        )
    return images


class TurnsCallback(Callback):
    """Measures its own run, and the other contenders in the run's pauses.

    Args:
        rounds: measurements of each contender, after one warm-up round.
        steps: training steps of each contender per round.
        images: folder of the dataset.
        others: names of the other contenders.
        out: folder of the results.
        name: name of the config and variant.
        megabytes: peak memory of each contender, measured before.
    """

    def __init__(
        self,
        rounds: int,
        steps: int,
        images: str,
        others: list[str],
        out: str,
        name: str,
        megabytes: dict[str, list[float]],
    ) -> None:
        self.rounds, self.steps, self.name, self.names = rounds, steps, name, others
        self.images, self.out, self.megabytes = Path(images), Path(out), megabytes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DDPM)
        batches = iterate_batches(trainer.train_dataloader, pl_module.device)
        self.size = len(next(batches)[0])
        precision = str(trainer.precision)
        self.others = {
            name: make_block(name, pl_module, batches, self.images, self.size, precision) for name in self.names
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in (OURS, *self.others)}
        self.steps_done, self.flops = 0, count_flops(pl_module, self.size)
        synchronize()
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps_done += 1
        if self.steps_done % self.steps:
            return
        synchronize()
        self.seconds[OURS].append((time.perf_counter() - self.started) / self.steps)
        for name, block in alternate_order(self.others, len(self.seconds[OURS])):
            self.seconds[name].append(_time_block(block, self.steps))
        if len(self.seconds[OURS]) == self.rounds + 1:
            self._report(pl_module, str(trainer.precision))
            trainer.should_stop = True
        synchronize()
        self.started = time.perf_counter()

    def _report(self, module: LightningModule, precision: str) -> None:
        counted = {name: seconds[1:] for name, seconds in self.seconds.items()}
        best = min(counted[OURS])
        kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        peak = measure_peak_flops(module.device, kind)
        settings = {
            "batch": self.size,
            "images": self.size,
            "parameters": f"{sum(each.numel() for each in module.parameters()):,}",
            "rounds": self.rounds,
            "steps per round": self.steps,
            "GFLOP per step": round(self.flops / 1e9),
            f"GFLOP/s of a {str(kind).removeprefix('torch.')} matrix product": round(peak / 1e9),
            "share of it in fit's fastest round": f"{self.flops / best / peak:.2f}",
        }
        write_result(self.out, f"training_{self.name}", settings, counted, self.megabytes)


def _time_block(block: Block, steps: int) -> float:
    synchronize()
    started = time.perf_counter()
    block(steps)
    synchronize()
    return (time.perf_counter() - started) / steps


def iterate_batches(loader: Any, where: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the run's own batches without end, as the training step gets them."""
    for _ in count():
        for x, label in loader:
            yield to_float(x.to(where)), label.to(where)


def count_flops(module: DDPM, n: int) -> int:
    """Count the floating-point operations of a training step's forward and backward pass, by torch's counter."""
    network = copy.deepcopy(module.network)
    x, t = (
        torch.randn(n, *module.image_shape, device=module.device),
        torch.ones(n, dtype=torch.long, device=module.device),
    )
    with FlopCounterMode(display=False) as counter:
        network(x, t).square().mean().backward()
    return int(counter.get_total_flops())


def measure_peak_flops(where: torch.device, kind: torch.dtype, times: int = 5) -> float:
    """Measure the FLOP/s of a product of two square matrices of this dtype, the best of ``times``."""
    size = 2048 if where.type == "cpu" else 8192  # large enough to fill a GPU
    a = torch.randn(size, size, device=where).to(kind)
    seconds = []
    for _ in range(times + 1):
        synchronize()
        started = time.perf_counter()
        a @ a
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def make_block(
    name: str,
    module: DDPM,
    batches: Iterator[tuple[Tensor, Tensor]],
    images: Path,
    batch_size: int,
    precision: str = "32-true",
) -> Block:
    """Return a function that takes this contender's training steps, of an uncompiled network like the module's."""
    if name == FLOOR:
        network = copy.deepcopy(module.network).to(memory_format=torch.contiguous_format)  # the copy is not compiled
        return make_bare_loop(network, module, batches, precision)
    if name == DIFFUSERS:
        return make_diffusers_loop(module, batches, precision)
    return make_denoising_diffusion_pytorch_loop(module, images, batch_size, precision)


def make_bare_loop(
    network: nn.Module,
    module: DDPM,
    batches: Iterator[tuple[Tensor, Tensor]],
    precision: str = "32-true",
    optimizer: OptimizerCallable | None = None,
) -> Block:
    """Return the minimal loop: Ho et al.'s Algorithm 1 with an optimizer, clipping and EMA, written by hand."""
    alpha_bar = module.schedule.alpha_bar.to(module.device, torch.float32)
    parameters = list(network.parameters())
    average = [each.detach().clone() for each in parameters]
    adam, T = (optimizer or module.optimizer)(parameters), module.schedule.T

    def block(steps: int) -> None:
        for _ in range(steps):
            x_0, _ = next(batches)
            t = torch.randint(1, T + 1, (len(x_0),), device=x_0.device)
            eps, signal = torch.randn_like(x_0), alpha_bar[t][:, None, None, None]
            with autocast(precision):
                output = network(signal.sqrt() * x_0 + (1 - signal).sqrt() * eps, t)
            loss = functional.mse_loss(output.float(), eps)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()
            adam.zero_grad()
            torch._foreach_lerp_(average, [each.detach() for each in parameters], 1e-4)

    return block


def make_diffusers_loop(module: DDPM, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> Block:
    """Return the loop of diffusers' examples/unconditional_image_generation, without accelerate and, as there, EMA."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler

    model = build_diffusers_unet(module).train()
    scheduler = DDPMScheduler(num_train_timesteps=module.schedule.T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)

    def block(steps: int) -> None:
        for _ in range(steps):
            clean, _ = next(batches)
            noise = torch.randn(clean.shape, dtype=torch.float32, device=clean.device)
            timesteps = torch.randint(
                0, scheduler.config.num_train_timesteps, (len(clean),), device=clean.device
            ).long()
            with autocast(precision):
                output = model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
            functional.mse_loss(output.float(), noise.float()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()

    return block


def make_denoising_diffusion_pytorch_loop(module: DDPM, images: Path, batch_size: int, precision: str) -> Block:
    """Return the steps of its own Trainer with its U-Net of the same width and depth, which is another network."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from denoising_diffusion_pytorch import Trainer as TheirTrainer

    network: Any = module.network
    multipliers = tuple(int(each) for each in module.hparams["network"]["init_args"]["multipliers"])
    width = int(module.hparams["network"]["init_args"]["width"])
    model = Unet(dim=width, dim_mults=multipliers, channels=network.channels, flash_attn=False)
    diffusion = GaussianDiffusion(model, image_size=network.size, timesteps=module.schedule.T, objective="pred_noise")
    trainer = TheirTrainer(
        diffusion,
        str(images),
        train_batch_size=batch_size,
        save_and_sample_every=10**9,
        calculate_fid=False,
        results_folder=str(images.parent / "results"),
        train_num_steps=0,
        amp=precision == "bf16-mixed",
        mixed_precision_type="bf16",
    )

    def block(steps: int) -> None:
        trainer.train_num_steps += steps
        trainer.train()

    return block
