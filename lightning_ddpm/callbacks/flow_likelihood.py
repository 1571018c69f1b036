"""Measures the likelihood of the held-out images under the model's probability-flow ODE, in bits/dim."""

import math
from functools import partial

from pytorch_lightning import LightningModule, Trainer

from lightning_ddpm.callbacks import trainer_access
from lightning_ddpm.callbacks.interval import Measurement
from lightning_ddpm.data import ImageDataset
from lightning_ddpm.data.missing import require_complete
from lightning_ddpm.metrics.flow_likelihood import NAME, FlowEstimate, check_tolerance, measure_flow_likelihood
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError


class FlowLikelihood(Measurement):
    """Computes -log2 p of held-out images by the probability-flow ODE, on all ranks, with EMA weights, on every path.

    It is logged as ``val/bits_per_dim_flow`` at the end of fit and as ``test/bits_per_dim_flow`` in test, with its
    ``..._standard_error``. Song et al. 2021 (arXiv:2011.13456), section 4.3, with Hutchinson's estimate of the
    divergence, without clipping. Of images with integer values it is an upper bound on -log2 of their probability, by
    uniform dequantisation, and compares with BitsPerDim, which noise schedules alone have; of real values it is the
    density in the data's own units, and may be below 0.

    Attributes:
        estimate: the last one.

    Args:
        n: number of images at most, spread evenly over the held-out ones; ``null`` for all.
        tolerance: of the solver (Song et al.: 1e-5); a lower one costs more network evaluations.
        batch_size: images at a time.
        seed: seed of dequantisation and of the estimate.
    """

    def __init__(self, n: int | None = None, tolerance: float = 1e-3, batch_size: int = 64, seed: int = 0) -> None:
        if (n is not None and n < 2) or batch_size < 1:
            raise UserError(f"a likelihood needs at least 2 images in batches of at least 1, got {n} and {batch_size}")
        super().__init__(interval=None)
        self.n, self.tolerance, self.batch_size, self.seed = n, check_tolerance(tolerance), batch_size, seed
        self.estimate: FlowEstimate | None = None

    def measure(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Measure with the averaged weights and print the estimate; every rank must call."""
        model, images, n = self._get_inputs(trainer, module)
        with trainer_access.use_averaged_weights(trainer, module):
            self.estimate = found = measure_flow_likelihood(
                *(model, images, n, self.seed, self.batch_size, self.tolerance),
                trainer_access.get_ranks(trainer),
                context=trainer.precision_plugin.forward_context,
                progress=partial(show_progress, what="likelihood", show=trainer.is_global_zero, bar=False),
            )
        if trainer.is_global_zero:
            report(
                f"{stage}/{NAME} of {found.n:,} images, tolerance {self.tolerance:g}, seed {self.seed}: "
                f"{found.mean:.4f} +- {found.standard_error:.4f} (+-: standard error; {found.nfe:.0f} NFE)"
            )
            if not math.isfinite(found.mean):
                report(f"{stage}/{NAME} is not finite: the weights have diverged, or the precision is too low")
        return {f"{stage}/{NAME}": found.mean, f"{stage}/{NAME}_standard_error": found.standard_error}

    def announce(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        """Print what will be measured, and refuse before any work what cannot be."""
        _, _, n = self._get_inputs(trainer, module)
        if trainer.is_global_zero:
            report(f"flow likelihood: {n:,} images {when}, with as many network evaluations as the tolerance requires")

    def _get_inputs(self, trainer: Trainer, module: LightningModule) -> tuple[DDPM, ImageDataset, int]:
        """Return the model, the held-out images and how many of them to measure."""
        model = trainer_access.require_ddpm(module, "the likelihood")
        require_complete(model.values, "FlowLikelihood")
        purpose = "FlowLikelihood measures an ImageDataModule's held-out images"
        return model, *trainer_access.require_held_out(trainer, purpose, self.n)
