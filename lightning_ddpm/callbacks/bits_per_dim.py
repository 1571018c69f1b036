"""Measures the likelihood of the held-out images under the model, in bits/dim."""

import math
from collections.abc import Mapping
from functools import partial

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks import trainer_access
from lightning_ddpm.callbacks.interval import Measurement
from lightning_ddpm.callbacks.plots import create_figure, render_figure
from lightning_ddpm.callbacks.run_logger import log_image
from lightning_ddpm.data import ImageDataset
from lightning_ddpm.data.sharding import split_evenly
from lightning_ddpm.diffusion import FixedLarge, NoiseSchedule, ReverseVariance, elbo_term, require_chain
from lightning_ddpm.diffusion.elbo import get_half_bin
from lightning_ddpm.metrics import BitsPerDimEstimate
from lightning_ddpm.metrics.bits_per_dim import build_denoisers, measure_bits_per_dim
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.console import format_duration, report, show_progress
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError


class BitsPerDim(Measurement):
    """Computes the variational bound on -log2 p of the held-out images, on all ranks, with EMA weights.

    It is logged as ``val/bits_per_dim`` at the end of fit and as ``test/bits_per_dim`` in test, with every x^_0 clipped
    as in sampling, to [-1, 1] by default, as Ho et al. 2020 (arXiv:2006.11239) report it; ``..._unclipped`` comes from
    the same network evaluations, T per image, and each has its ``..._standard_error``. The mean of each of the T terms
    is plotted as a TensorBoard image and as ``val_bits_per_dim.png`` or ``test_bits_per_dim.png`` in the run's folder.
    The noise of image i at t is a function of (seed, i, t): the values are, up to rounding, the same for any number of
    ranks and any batch size.

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
        super().__init__(interval=None)
        self.n, self.variance, self.batch_size, self.seed = n, variance or FixedLarge(), batch_size, seed
        self.likelihoods: dict[str, BitsPerDimEstimate] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a model that has no variational bound, before anything is written."""
        if stage in ("fit", "test"):
            _require_bound(pl_module)

    def measure(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Measure with the averaged weights, print the estimates and save the plot; every rank must call."""
        model, images, n = self._get_inputs(trainer, module)
        with trainer_access.use_averaged_weights(trainer, module):
            self.likelihoods = measure_bits_per_dim(
                *(model, images, n, self.variance, self.seed, self.batch_size),
                trainer_access.get_ranks(trainer),
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

    def announce(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        """Print the cost, estimated from one timed batch, and refuse before any work what cannot be measured."""
        model, _, n = self._get_inputs(trainer, module)
        _, schedule = _require_bound(model)
        denoise, _ = build_denoisers(model, trainer.precision_plugin.forward_context)
        _, _, size = split_evenly(n, 0, self.batch_size, Ranks(0, trainer.world_size))[0]
        x = torch.zeros(size, *model.image_shape, dtype=schedule.beta.dtype, device=model.device)

        def compute_term() -> Tensor:
            return elbo_term(schedule, self.variance, x, 1, denoise(x, 1), denoise.levels)

        with evaluation_mode(model):
            seconds = schedule.T * trainer_access.estimate_seconds(trainer, compute_term, n, size)
        if trainer.is_global_zero:
            cost = f"{n:,} images x {schedule.T} network evaluations"
            report(f"bits/dim: {cost} {when}, about {format_duration(seconds)}")

    def _get_inputs(self, trainer: Trainer, module: LightningModule) -> tuple[DDPM, ImageDataset, int]:
        """Return the model, the held-out images and how many of them to measure."""
        model, _ = _require_bound(module)
        purpose = "BitsPerDim measures an ImageDataModule's held-out images"
        return model, *trainer_access.require_held_out(trainer, purpose, self.n)

    def _report(self, trainer: Trainer, stage: str) -> None:
        clipped, unclipped = self.likelihoods.values()
        title = f"{stage}/bits_per_dim of {clipped.n:,} images, {self.variance}, seed {self.seed}"
        report(
            f"{title}: {_format_estimate(clipped)} (prior {clipped.prior:.4f}, KL {float(clipped.terms[1:].sum()):.4f}"
            f", decoder {float(clipped.terms[0]):.4f}; unclipped {_format_estimate(unclipped)}; +-: standard error)"
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
        log_image(trainer, plot, f"{stage}_bits_per_dim.png", f"{stage}/bits_per_dim_terms")


def _require_bound(module: LightningModule) -> tuple[DDPM, NoiseSchedule]:
    """Return the model and its schedule; UserError if it has no variational bound on discrete values."""
    model = trainer_access.require_ddpm(module, "bits/dim")
    get_half_bin(model.values.levels)  # raises for continuous data
    return model, require_chain(model.schedule, "BitsPerDim", "the callback FlowLikelihood in its place")


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
