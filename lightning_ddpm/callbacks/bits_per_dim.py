"""Measures the likelihood of the held-out images under the model, in bits/dim."""

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks.plots import create_figure, render_figure
from lightning_ddpm.callbacks.run_logger import get_writers
from lightning_ddpm.callbacks.trainer_access import (
    get_ranks,
    log_now,
    move_to_device,
    require_ddpm,
    require_image_data,
    use_averaged_weights,
)
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.diffusion import FixedLarge, ReverseVariance, elbo_term
from lightning_ddpm.metrics import BitsPerDimEstimate
from lightning_ddpm.metrics.bits_per_dim import build_denoisers, measure_bits_per_dim
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.console import format_duration, report, show_progress
from lightning_ddpm.utils.errors import UserError


class BitsPerDim(Callback):
    """Computes the variational bound on -log2 p of the held-out images, on all ranks, with EMA weights.

    It is logged as ``val/bits_per_dim`` at the end of fit and as ``test/bits_per_dim`` in test, with every x^_0 clipped
    to [-1, 1], as Ho et al. 2020 (arXiv:2006.11239) report it; ``..._unclipped`` comes from the same network
    evaluations, T per image, and each has its ``..._standard_error``. The mean of each of the T terms is plotted as a
    TensorBoard image and as ``val_bits_per_dim.png`` or ``test_bits_per_dim.png`` in the run's folder. The noise of
    image i at t is a function of (seed, i, t): the values are the same for any number of ranks and, up to rounding,
    any batch size.

    Attributes:
        likelihoods: the last estimates, under ``bits_per_dim`` and ``bits_per_dim_unclipped``.

    Args:
        n: number of images at most, spread evenly over the held-out ones; ``null`` for all.
        variance: Sigma of the reverse steps; ``null`` for FixedLarge, as Ho et al. (CIFAR-10: 3.75). A network that
            learns the variance needs LearnedRange.
        batch_size: images at a time.
        seed: seed of the noise.
    """

    def __init__(
        self, n: int | None = None, variance: ReverseVariance | None = None, batch_size: int = 64, seed: int = 0
    ) -> None:
        if (n is not None and n < 2) or batch_size < 1:
            raise UserError(f"bits/dim needs at least 2 images in batches of at least 1, got {n} and {batch_size}")
        self.n, self.variance, self.batch_size, self.seed = n, variance or FixedLarge(), batch_size, seed
        self.likelihoods: dict[str, BitsPerDimEstimate] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._announce(trainer, pl_module, "at the end of training")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with move_to_device(trainer, pl_module):
            log_now(trainer, self.measure(trainer, pl_module, "val"))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._announce(trainer, pl_module, "after the losses")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            pl_module.log_dict(self.measure(trainer, pl_module, "test"))

    def measure(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Measure with the current weights, print the estimates and save the plot; every rank must call.

        Args:
            trainer, module: the run.
            stage: ``val`` or ``test``, the first part of every name.

        Returns:
            The metrics to log.
        """
        model, images = require_ddpm(module, "bits/dim"), _get_held_out(trainer)
        with use_averaged_weights(trainer, module):
            self.likelihoods = measure_bits_per_dim(
                *(model, images, self._count(images), self.variance, self.seed, self.batch_size),
                get_ranks(trainer),
                context=trainer.precision_plugin.forward_context,
                progress=partial(show_progress, what="bits/dim", show=trainer.is_global_zero, bar=False),
            )
        if trainer.is_global_zero:
            self._report(trainer, stage)
        return {
            f"{stage}/{name}{what}": value
            for name, each in self.likelihoods.items()
            for what, value in (("", each.mean), ("_standard_error", each.standard_error))
        }

    def _announce(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        """Print the cost, estimated from one timed batch, and refuse before any work what cannot be measured."""
        model, images = require_ddpm(module, "bits/dim"), _get_held_out(trainer)
        n, schedule = self._count(images), model.schedule
        denoise, _ = build_denoisers(model, trainer.precision_plugin.forward_context)
        x = torch.zeros(min(self.batch_size, n), *model.image_shape, dtype=schedule.beta.dtype, device=model.device)

        def one_term() -> float:
            return float(elbo_term(schedule, self.variance, x, 1, denoise(x, 1)).sum())  # waits for the device

        with evaluation_mode(model):
            one_term()
            started = time.monotonic()
            one_term()
        batches = math.ceil(math.ceil(n / self.batch_size) / trainer.world_size)
        seconds = (time.monotonic() - started) * schedule.T * batches
        if trainer.is_global_zero:
            report(
                f"bits/dim: {n:,} images x {schedule.T} network evaluations {when}, about {format_duration(seconds)}"
            )

    def _count(self, images: ImageDataset) -> int:
        n = min(self.n or len(images), len(images))
        if n < 2:
            raise UserError(f"the standard error of bits/dim needs at least 2 held-out images, got {n}; hold out more")
        return n

    def _report(self, trainer: Trainer, stage: str) -> None:
        clipped, unclipped = self.likelihoods.values()
        title = f"{stage}/bits_per_dim of {clipped.n:,} images, {self.variance}, seed {self.seed}"
        report(
            f"{title}: {_format_estimate(clipped)} (prior {clipped.prior:.4f}, KL {float(clipped.terms[1:].sum()):.4f}"
            f", decoder {float(clipped.terms[0]):.4f}; unclipped {_format_estimate(unclipped)})"
        )
        for name, each in self.likelihoods.items():
            if not math.isfinite(each.mean):
                bad = [str(t) for t, term in enumerate(each.terms.tolist(), start=1) if not math.isfinite(term)]
                steps = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
                report(
                    f"{stage}/{name} is not finite: its terms are not finite at {len(bad)} of {len(each.terms)} steps, "
                    f"t = {steps}; the weights have diverged, or the precision ({trainer.precision}) is too low"
                )
        plot = _plot_terms(self.likelihoods, title)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_image(plot, folder / f"{stage}_bits_per_dim.png")
        for writer in get_writers(trainer):
            writer.add_image(f"{stage}/bits_per_dim_terms", plot, trainer.global_step)


def _format_estimate(likelihood: BitsPerDimEstimate) -> str:
    return f"{likelihood.mean:.4f} +- {likelihood.standard_error:.4f}"


def _plot_terms(likelihoods: Mapping[str, BitsPerDimEstimate], title: str) -> Tensor:
    """Plot the terms over t as an image, (3, H, W) uint8."""
    figure = create_figure()
    axes = figure.add_subplot(title=title, xlabel="t", ylabel="bits/dim of each term", xscale="log", yscale="log")
    for (name, each), style in zip(likelihoods.items(), ("-", "--"), strict=True):
        steps = range(1, len(each.terms) + 1)
        axes.plot(steps, each.terms.tolist(), style, marker=".", markersize=3, label=f"{name} {_format_estimate(each)}")
    axes.legend()
    axes.grid(alpha=0.3)
    return render_figure(figure)


def _get_held_out(trainer: Trainer) -> ImageDataset:
    return require_image_data(trainer, "BitsPerDim measures an ImageDataModule's held-out images").held_out
