"""A training step: `fit` itself, and in its pauses the same step elsewhere.

The whole program runs, with its EMA, logging and clipping; a callback of it stops the clock every so many steps and
lets the others take as many, so that all are measured in turn, on the same data and, where the network is the same,
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
from benchmarks.models import SHAPES, autocast, diffusers_unet, network_arguments, variant
from benchmarks.report import alone, forwards_and_back, synchronize, write
from lightning_ddpm.data.image_io import save_image, to_float
from lightning_ddpm.models.ddpm import DDPM

IMAGES = 2048
OURS, FLOOR, DIFFUSERS, PYTORCH = "fit", "bare loop", "diffusers", "denoising-diffusion-pytorch"
Block = Callable[[int], None]


def run(options: Namespace) -> None:
    """Fit with :class:`Turns` among the callbacks; before that the memory of each, in a process of its own."""
    size, channels, default = SHAPES[options.config]
    batch_size = options.batch_size or default
    steps = 1 if options.config == "cifar10" else 3
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_up(Path(folder), IMAGES, channels, size)
        others = [FLOOR, DIFFUSERS, *([PYTORCH] if batch_size >= 16 else [])]  # it takes no fewer
        where = {"config": options.config, "pictures": str(pictures), "batch_size": batch_size}
        where |= {"precision": options.precision, "switches": switches(options)}
        peaks = {who: [alone("step", who=who, **where)["megabytes"]] for who in (OURS, *others)}
        settings = {"rounds": options.rounds, "steps": steps, "pictures": str(pictures), "others": others}
        settings |= {"out": str(options.out), "name": f"{options.config}{variant(options)}", "megabytes": peaks}
        turns = {"class_path": "benchmarks.training.Turns", "init_args": settings}
        fit(callback=turns, **where | {"pictures": pictures})


def switches(options: Namespace) -> list[str]:
    """The callbacks that the options ask for."""
    asked = {
        "lightning_ddpm.callbacks.ChannelsLast": options.channels_last,
        "lightning_ddpm.callbacks.Compile": options.compile,
    }
    return [name for name, on in asked.items() if on]


def fit(
    config: str,
    pictures: Path,
    batch_size: int,
    callback: dict[str, Any],
    steps: int = 10**6,
    size: int | None = None,
    precision: str = "32-true",
    switches: Sequence[str] = (),
) -> None:
    """The program's own fit, with EMA, clipping, logging and the callbacks, in a folder that goes away."""
    settings = models.read(config)
    kept = [each for each in settings["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Checkpoints"))]
    for each in kept:
        each["init_args"].pop("monitor", None)
    added = [{"class_path": each} for each in switches]
    settings["trainer"].update(
        callbacks=[*added, *kept, callback], precision=precision, limit_val_batches=0, max_steps=steps
    )
    arguments = network_arguments(config, size)
    shape = {name: arguments[name] for name in ("channels", "size")}
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": shape}
    settings["model"]["init_args"]["network"]["init_args"] = arguments
    settings["data"] = {"source": source, "root": str(pictures), "batch_size": batch_size, "workers": 0}
    with tempfile.TemporaryDirectory() as folder:
        models.fit(settings, Path(folder))


def make_up(folder: Path, n: int, channels: int, size: int) -> Path:
    """A folder of n pictures of noise in ``folder``."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for index in range(n):
        noise = torch.Generator().manual_seed(index)
        save_image(
            torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=noise), pictures / f"{index}.png"
        )
    return pictures


class Turns(Callback):
    """Measures the run that it is in, and the others in its pauses.

    Args:
        rounds: how often each is measured, after one round that does not count.
        steps: of each in a round.
        pictures: folder of the data set.
        others: who they are.
        out: folder of the results.
        name: of the config.
        megabytes: of each, measured before.
    """

    def __init__(
        self,
        rounds: int,
        steps: int,
        pictures: str,
        others: list[str],
        out: str,
        name: str,
        megabytes: dict[str, list[float]],
    ) -> None:
        self.rounds, self.steps, self.name, self.names = rounds, steps, name, others
        self.pictures, self.out, self.megabytes = Path(pictures), Path(out), megabytes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DDPM)
        batches = batches_of(trainer.train_dataloader, pl_module.device)
        self.size = len(next(batches)[0])
        precision = str(trainer.precision)
        self.others = {
            name: block_of(name, pl_module, batches, self.pictures, self.size, precision) for name in self.names
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in (OURS, *self.others)}
        self.taken, self.flops = 0, flops(pl_module, self.size)
        synchronize()
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.taken += 1
        if self.taken % self.steps:
            return
        synchronize()
        self.seconds[OURS].append((time.perf_counter() - self.began) / self.steps)
        for name, block in forwards_and_back(self.others, len(self.seconds[OURS])):
            self.seconds[name].append(_timed(block, self.steps))
        if len(self.seconds[OURS]) == self.rounds + 1:
            self._report(pl_module, str(trainer.precision))
            trainer.should_stop = True
        synchronize()
        self.began = time.perf_counter()

    def _report(self, module: LightningModule, precision: str) -> None:
        counted = {name: seconds[1:] for name, seconds in self.seconds.items()}
        best = min(counted[OURS])
        kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        peak = matrix_product_peak(module.device, kind)
        settings = {
            "batch": self.size,
            "images": self.size,
            "parameters": f"{sum(each.numel() for each in module.parameters()):,}",
            "rounds": self.rounds,
            "steps a round": self.steps,
            "GFLOP a step": round(self.flops / 1e9),
            f"GFLOP/s of a {str(kind).removeprefix('torch.')} matrix product": round(peak / 1e9),
            "share of it in fit's fastest round": f"{self.flops / best / peak:.2f}",
        }
        write(self.out, f"training_{self.name}", settings, counted, self.megabytes)


def _timed(block: Block, steps: int) -> float:
    synchronize()
    started = time.perf_counter()
    block(steps)
    synchronize()
    return (time.perf_counter() - started) / steps


def batches_of(loader: Any, where: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The run's own batches, for ever, as the training step gets them."""
    for _ in count():
        for x, label in loader:
            yield to_float(x.to(where)), label.to(where)


def flops(module: DDPM, n: int) -> int:
    """Floating-point operations of a training step's network calls, there and back, by torch's counter."""
    network = copy.deepcopy(module.network)
    x, t = (
        torch.randn(n, *module.image_shape, device=module.device),
        torch.ones(n, dtype=torch.long, device=module.device),
    )
    with FlopCounterMode(display=False) as counter:
        network(x, t).square().mean().backward()
    return int(counter.get_total_flops())


def matrix_product_peak(where: torch.device, kind: torch.dtype, times: int = 5) -> float:
    """FLOP/s of a product of two square matrices of that kind, the best of so many."""
    size = 2048 if where.type == "cpu" else 8192  # a GPU takes more to fill
    a = torch.randn(size, size, device=where).to(kind)
    seconds = []
    for _ in range(times + 1):
        synchronize()
        started = time.perf_counter()
        a @ a
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def block_of(
    name: str,
    module: DDPM,
    batches: Iterator[tuple[Tensor, Tensor]],
    pictures: Path,
    batch_size: int,
    precision: str = "32-true",
) -> Block:
    """Takes steps as the one of that name does, of a network like the module's; none but ``fit`` is compiled."""
    if name == FLOOR:
        network = copy.deepcopy(module.network).to(memory_format=torch.contiguous_format)  # a copy is not compiled
        return bare(network, module, batches, precision)
    if name == DIFFUSERS:
        return diffusers(module, batches, precision)
    return denoising_diffusion_pytorch(module, pictures, batch_size, precision)


def bare(
    network: nn.Module,
    module: DDPM,
    batches: Iterator[tuple[Tensor, Tensor]],
    precision: str = "32-true",
    optimizer: OptimizerCallable | None = None,
) -> Block:
    """What must be done at least: Ho's algorithm 1 with the module's optimizer or another, clipping, EMA, by hand."""
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


def diffusers(module: DDPM, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> Block:
    """The loop of diffusers' examples/unconditional_image_generation, without accelerate, the EMA being off there."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler

    model = diffusers_unet(module).train()
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


def denoising_diffusion_pytorch(module: DDPM, pictures: Path, batch_size: int, precision: str) -> Block:
    """Its own Trainer; its U-Net of the same width and depth, which is another network."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from denoising_diffusion_pytorch import Trainer as TheirTrainer

    network: Any = module.network
    multipliers = tuple(int(each) for each in module.hparams["network"]["init_args"]["multipliers"])
    width = int(module.hparams["network"]["init_args"]["width"])
    model = Unet(dim=width, dim_mults=multipliers, channels=network.channels, flash_attn=False)
    diffusion = GaussianDiffusion(model, image_size=network.size, timesteps=module.schedule.T, objective="pred_noise")
    trainer = TheirTrainer(
        diffusion,
        str(pictures),
        train_batch_size=batch_size,
        save_and_sample_every=10**9,
        calculate_fid=False,
        results_folder=str(pictures.parent / "results"),
        train_num_steps=0,
        amp=precision == "bf16-mixed",
        mixed_precision_type="bf16",
    )

    def block(steps: int) -> None:
        trainer.train_num_steps += steps
        trainer.train()

    return block
