"""Compares images that are generated from images with their originals, during training."""

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks import trainer_access
from lightning_ddpm.callbacks.interval import Interval, PeriodicCallback
from lightning_ddpm.callbacks.run_logger import log_image
from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.missing import require_complete
from lightning_ddpm.data.previews import choose_preview
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.metrics.pair_quality import check_sides, measure_pairs
from lightning_ddpm.models.conditioning import show_given
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import check_request
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError

TITLES = "given", "sample", "original"
"""Columns of the grid."""


class PairQuality(PeriodicCallback):
    """Computes PSNR and SSIM of images that are generated from held-out images, with EMA weights, on all ranks.

    They are logged as ``val/psnr`` in dB and ``val/ssim``, and beside them as ``val/psnr_given`` and
    ``val/ssim_given`` those of the images that are given, enlarged by bicubic interpolation.
    ``samples/pairs-<step>.png`` in the run's folder, and a TensorBoard image, show the first pairs. Means of PSNR are
    over the images that are not exact. In test the names begin with ``test/``. The noise is the same every time.

    Attributes:
        evaluated_step: the step of the last evaluation; -1 before the first.
        last_metrics: what it logged.

    Args:
        n: number of held-out pairs at most, spread evenly over all of them.
        sampler: the sampler; ``null`` for the model's own.
        every_n_steps: interval in optimizer steps, or
        every_n_epochs: in epochs; give one of the two.
        shown: number of pairs in the grid.
        batch_size: images generated at a time.
        seed: seed of the noise.
        guidance: guidance towards the condition; ``null`` for none.
    """

    def __init__(
        self,
        n: int = 256,
        sampler: Sampler | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        shown: int = 8,
        batch_size: int = 64,
        seed: int = 0,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__(Interval(every_n_steps, every_n_epochs))
        if not 1 <= shown <= n:
            raise UserError(f"the grid shows at least 1 of the n pairs, got shown={shown} and n={n}")
        self.request, self.shown = SampleRequest(n, seed, batch_size, sampler, guidance), shown
        self.evaluated_step, self.last_metrics = -1, dict[str, float]()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse before any work a model or data without pairs."""
        if stage == "predict":
            return
        model = trainer_access.require_ddpm(pl_module, "PairQuality")
        if model.condition_format.image is None:
            raise UserError(
                "PairQuality compares images that are generated from images, and the network is given none; "
                "remove the callback, or list ConcatenatedImage in model.network.conditions"
            )
        require_complete(model.values, "PairQuality")
        if not model.values.bounded:
            raise UserError(
                f"PSNR needs values of a known range, and the model's are {model.values.describe()}, without bounds; "
                "give low and high to the source, or remove PairQuality"
            )
        check_sides(*model.image_shape[1:])
        check_request(model, self.request)
        if not self._get_pairs(trainer)[1]:
            raise UserError("PairQuality needs held-out pairs, and there are none; hold some out")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            pl_module.log_dict(self.evaluate(trainer, pl_module, "val"))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log_dict(self.evaluate(trainer, pl_module, "test"))

    def run_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate and log."""
        self.last_metrics = values = self.evaluate(trainer, module, "val")
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        trainer_access.log_now(trainer, values)

    def evaluate(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Return the metrics of the current weights as ``stage/<metric>``; every rank must call."""
        model, (data, chosen) = trainer_access.require_ddpm(module, "PairQuality"), self._get_pairs(trainer)
        request = SampleRequest(
            *(len(chosen), self.request.seed, self.request.batch_size, self.request.sampler, self.request.guidance),
            conditions=lambda start, stop: data.read_conditions(chosen[start:stop]),
        )
        metrics = torch.zeros(len(chosen), 4, dtype=torch.float64, device=model.device)
        shown = torch.zeros(min(self.shown, len(chosen)), 3, *model.image_shape, device=model.device)
        for start, pixels in trainer_access.generate_images(trainer, module, request, "pairs"):
            stop = start + len(pixels)
            originals, condition = data.__getitems__(chosen[start:stop])
            assert isinstance(condition, Condition)
            assert condition.image is not None
            generated, original = (model.values.to_float(each.to(model.device)) for each in (pixels, originals))
            image = condition.image.to(model.device)
            given = show_given(image, model.condition_values, model.image_shape, model.values)
            given = model.values.to_float(given)
            metrics[start:stop, :2] = measure_pairs(generated + 1, original + 1, 2.0)  # SSIM is for values from 0
            metrics[start:stop, 2:] = measure_pairs(given + 1, original + 1, 2.0)
            if start < len(shown):
                rows = torch.stack([given, generated, original], dim=1)
                shown[start:stop] = rows[: len(shown) - start]
        ranks = trainer_access.get_ranks(trainer)
        metrics, shown = ranks.reduce(metrics).cpu(), ranks.reduce(shown).cpu()
        names = ("psnr", "ssim", "psnr_given", "ssim_given")
        values = {f"{stage}/{name}": _mean_finite(each) for name, each in zip(names, metrics.T, strict=True)}
        self.evaluated_step = trainer.global_step
        if trainer.is_global_zero:
            self._report(trainer, model, values, shown, len(chosen))
        return values

    def _report(self, trainer: Trainer, model: DDPM, values: dict[str, float], shown: Tensor, n: int) -> None:
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        report(f"step {trainer.global_step}: {text} ({n} pairs)")
        pixels = model.values.to_data(shown.flatten(0, 1))
        preview = choose_preview(model.values, model.image_shape[0])
        grid = preview.arrange(model.values, pixels, len(TITLES), TITLES)
        log_image(trainer, grid, f"samples/pairs-{trainer.global_step:07d}.png", "pairs")

    def _get_pairs(self, trainer: Trainer) -> tuple[ConditionedDataset, list[int]]:
        """Return the held-out images and the indices of those that are compared."""
        data = trainer_access.require_image_data(trainer, "PairQuality compares an ImageDataModule's pairs").held_out
        if not isinstance(data, ConditionedDataset):
            raise UserError("PairQuality needs data of pairs, such as PairedFolders; remove the callback")
        return data, spread_indices(min(self.request.n, len(data)), len(data))


def _mean_finite(values: Tensor) -> float:
    """Return the mean without the infinite values, those of exact images; infinity where all are, NaN if one is NaN."""
    finite = values[~values.isinf()]
    return float(finite.mean()) if len(finite) else float("inf")
