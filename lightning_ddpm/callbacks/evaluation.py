"""Generates images during training and measures their quality."""

import time
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from pytorch_lightning import LightningModule, Trainer

from lightning_ddpm.callbacks import trainer_access
from lightning_ddpm.callbacks.interval import Interval, PeriodicCallback
from lightning_ddpm.callbacks.run_logger import get_writers
from lightning_ddpm.data.missing import require_complete
from lightning_ddpm.data.sharding import split_evenly
from lightning_ddpm.data.value_range import DTYPES
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.metrics import FeatureExtractor, MetricValue, RequestedClasses
from lightning_ddpm.metrics.image_batches import BATCH
from lightning_ddpm.metrics.references import TRAINING, ReferenceSet, open_reference
from lightning_ddpm.metrics.suite import (
    Suite,
    build_suites,
    check_metrics,
    check_reference,
    list_metric_names,
    needs_features,
)
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode, list_labels
from lightning_ddpm.models.image_generator import count_nfe, name_sampler, require_generator
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import format_duration, report, show_progress
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

PURPOSE = "Evaluation compares with an ImageDataModule's images"


class Evaluation(PeriodicCallback):
    """Computes metrics of n generated images against the un-augmented training images, on all ranks, with EMA weights.

    The model is a DDPM or any other :class:`~lightning_ddpm.models.image_generator.ImageGenerator`.
    The n images start from the same noise every time, and all metrics share one pass of the feature network. In fit the
    callback runs at an interval, and not in the sanity check, and logs ``val/<metric>``; the metric's name contains the
    feature network's. Every rank knows the values, and each metric can be the ``monitor`` of Checkpoints. Validate logs
    ``val/<metric>`` too, and test ``test/<metric>``.

    Without an interval there is one evaluation, after training has ended and last.ckpt is written, logged as
    ``final/<metric>``. A run that is resumed at its end repeats it; validate and test do not evaluate then.

    Attributes:
        evaluated_step: the step of the last evaluation; -1 before the first.
        last_metrics: what the last evaluation at the interval logged.
        seconds: duration of each evaluation since fit began; max_share uses the first rank's.

    Args:
        extractor: the feature network; Inception's Frechet distance is the FID. ``null`` for metrics without one.
        n: number of images to generate; 50,000 for a published metric.
        metrics: any of fid, kid, pr (precision and recall), is (Inception Score) and accuracy (how often the feature
            network predicts the requested class: ``val/accuracy_...`` and, for each class, ``val/accuracy_.../class``);
            without a network spectrum (``val/spectrum_db``) and marginals (``val/wasserstein``), of any values and
            channels, see :mod:`lightning_ddpm.metrics.fields`.
        sampler: the sampler; ``null`` for the model's own.
        every_n_steps: interval in optimizer steps, or
        every_n_epochs: in epochs; give one of the two, or neither for one evaluation at the end.
        max_share: largest share, in (0, 1], of the time since fit began that evaluations at the interval may take. An
            evaluation that would exceed it, if it took as long as the longest so far or else as estimated, is skipped.
            ``null`` for no limit.
        batch_size: images generated at a time.
        seed: seed of the set of images.
        guidance: guidance towards the images' classes, which have the training data's frequencies; ``null`` for no
            guidance beyond conditioning the network on them.
        reference: what the images are compared with: ``training``, ``held_out``, a folder, whose images are read as
            training reads them, or an npz file of images (``arr_0``) or of statistics (``mu``, ``sigma``).
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None,
        n: int,
        metrics: Sequence[str] = ("fid",),
        sampler: Sampler | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        max_share: float | None = None,
        batch_size: int = 64,
        seed: int = 0,
        guidance: Guidance | None = None,
        reference: str = TRAINING,
    ) -> None:
        if n < 2 or batch_size < 1:
            raise UserError(f"an evaluation needs at least 2 images in batches of at least 1, got {n} and {batch_size}")
        if max_share is not None and not 0 < max_share <= 1:
            raise UserError(f"max_share is a share of the run's time, above 0 and at most 1, got {max_share}; try 0.1")
        if max_share is not None and every_n_steps is None and every_n_epochs is None:
            raise UserError("max_share limits evaluations at an interval; give every_n_steps, or remove max_share")
        check_metrics(metrics, n)
        if needs_features(metrics) != (extractor is not None):
            given = "is null" if extractor is None else f"is {type(extractor).__name__}"
            raise UserError(
                f"the extractor {given}, and metrics are {', '.join(metrics)}: spectrum and marginals are computed "
                "without a network, all others with one"
            )
        super().__init__(Interval.or_end(every_n_steps, every_n_epochs))
        self.extractor, self.metrics, self.max_share = extractor, metrics, max_share
        self.request = SampleRequest(n, seed, batch_size, sampler, guidance)
        self.reference, self._opened = reference, ReferenceSet(None, None, "")
        self.suites: list[Suite] = []
        self.evaluated_step = -1
        self.last_metrics: dict[str, float] = {}
        self.seconds: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the extractor's weights, on the first rank first, so that missing files are reported before any work."""
        if stage == "predict" or (self.interval is None and stage != "fit"):
            return
        require_complete(require_generator(pl_module).values, "Evaluation")
        trainer_access.prepare_evaluation(trainer, pl_module, self.extractor, self.request)
        self._opened = open_reference(self.reference, trainer_access.require_image_data(trainer, PURPOSE))
        if (n := self._opened.n) is not None:
            check_reference(self.metrics, n, self._opened.name)
        if not self.extractor or "fid" not in self.metrics or self.request.n >= self.extractor.num_features:
            return
        if trainer.is_global_zero:
            warnings.warn(
                f"{self.request.n} images are too few for the covariance of {self.extractor.num_features} features: "
                f"{self.extractor.metric} will be inaccurate; generate at least {self.extractor.num_features}",
                stacklevel=2,
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self.seconds = time.monotonic(), []
        self._prepare(trainer, pl_module)
        cost = self.estimate_cost(trainer, pl_module)
        if trainer.is_global_zero:
            report(f"evaluation{'' if self.interval else ' at the end'}: {cost}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval and trainer.state.fn == "validate":
            pl_module.log_dict(self.evaluate(trainer, pl_module))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval:
            pl_module.log_dict(self.evaluate(trainer, pl_module, "test"))

    def run_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate and log, unless max_share forbids it."""
        if self.interval is None:
            values = self.evaluate(trainer, module, "final")
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        elif self._is_affordable(trainer):
            self.last_metrics = values = self.evaluate(trainer, module)
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        else:
            return
        trainer_access.log_now(trainer, values)

    def _is_affordable(self, trainer: Trainer) -> bool:
        """Return whether max_share permits an evaluation now; the first rank's clock decides for all."""
        if self.max_share is None:
            return True
        expected = max(self.seconds, default=self._estimate)
        share = (sum(self.seconds) + expected) / (time.monotonic() - self._began + expected)
        affordable = trainer.strategy.broadcast(share <= self.max_share)
        if not affordable and trainer.is_global_zero:
            report(
                f"step {trainer.global_step}: evaluation skipped: with another {format_duration(expected)}, "
                f"evaluations would take {share:.2g} of the time, and max_share is {self.max_share:g}"
            )
        return affordable

    def evaluate(self, trainer: Trainer, module: LightningModule, stage: str = "val") -> dict[str, float]:
        """Return the metrics of the current weights, on all ranks, as ``stage/<metric>``; every rank must call."""
        started = time.monotonic()
        suites, ranks = self._prepare(trainer, module), trainer_access.get_ranks(trainer)
        for start, pixels in trainer_access.generate_images(trainer, module, self.request, "evaluation"):
            for suite in suites:
                suite.update(start, pixels)
        found = [suite.compute(ranks) for suite in suites]
        values: dict[str, MetricValue] = trainer.strategy.broadcast({k: v for each in found for k, v in each.items()})
        self.evaluated_step = trainer.global_step
        self.seconds.append(time.monotonic() - started)
        if trainer.is_global_zero:
            text = ", ".join(f"{stage}/{name} {_format_metric(each)}" for name, each in values.items())
            report(f"step {trainer.global_step}: {text} ({self.request.n} images)")
        return {f"{stage}/{name}": each.value for name, each in values.items()}

    def estimate_cost(self, trainer: Trainer, module: LightningModule) -> str:
        """Describe the cost of one evaluation, estimated from one timed batch of images and one of features."""
        model, n = require_generator(module), self.request.n
        _, _, size = split_evenly(n, 0, self.request.batch_size, Ranks(0, trainer.world_size))[0]
        measured = min(BATCH, n)
        estimate = partial(trainer_access.estimate_seconds, trainer, n=n)
        zeros = torch.zeros(measured, *model.image_shape, dtype=DTYPES[model.values.dtype], device=model.device)
        with evaluation_mode(module):
            with trainer.precision_plugin.forward_context():
                if isinstance(model, DDPM) and count_nfe(model, self.request):
                    schedule, (denoise, x, _) = model.schedule, model.prepare_sampling(self.request, 0, size)
                    nfe = (self.request.sampler or model.sampler).nfe(schedule.T) or 0  # that of guidance is timed
                    sampling = nfe * estimate(lambda: denoise(x, schedule.T // 2 + 1).x_0, batch_size=size)
                else:  # the number of network evaluations is not known, so that a whole batch of images is generated
                    sampling = estimate(lambda: model.generate(self.request, 0, size), batch_size=size)
            extraction = estimate(partial(self.extractor, zeros), batch_size=measured) if self.extractor else 0.0
        self._estimate = sampling + extraction
        features = f"{format_duration(extraction)} of it for features; " if self.extractor else ""
        return (
            f"{trainer_access.describe_work(model, self.request)}, about {format_duration(self._estimate)}, {features}"
            f"{', '.join(self._list_logged_names())} by {self._list_protocols()}; {self._compared_with}"
        )

    def _list_protocols(self) -> str:
        return "; ".join(each.protocol for each in self.suites)

    def _list_logged_names(self) -> list[str]:
        stage, of_features = "val" if self.interval else "final", self.extractor.metric if self.extractor else ""
        return [f"{stage}/{name}" for name in list_metric_names(of_features, self.metrics)]

    def _prepare(self, trainer: Trainer, module: LightningModule) -> list[Suite]:
        if not self.suites:
            model, ranks = require_generator(module), trainer_access.get_ranks(trainer)
            data = trainer_access.require_image_data(trainer, PURPOSE)
            n, guidance, classes = self.request.n, self.request.guidance, None
            if isinstance(model, DDPM) and (labels := list_labels(model, self.request)) is not None:
                classes = RequestedClasses(labels, model.list_class_names(guidance))
            extractors = [self.extractor] if self.extractor else []
            self.suites = build_suites(extractors, module.device, self.metrics, n, model.image_shape, classes)
            show = partial(show_progress, what="reference", show=trainer.is_global_zero, bar=False)
            images, statistics = self._opened.images, self._opened.statistics
            described = [
                suite.set_reference(images, statistics, ranks, show, data.num_workers) for suite in self.suites
            ]
            name = "" if self.reference == TRAINING else f"{self._opened.name}: "
            self._compared_with = name + "; ".join(described)
            protocol = f"n={n}, sampler {name_sampler(model, self.request)}, seed={self.request.seed}"
            protocol += f", guidance {guidance}" if guidance else ""
            for writer in get_writers(trainer):
                for name in self._list_logged_names():
                    writer.add_text(f"{name}/protocol", f"{protocol}, {self._list_protocols()}, {self._compared_with}")
        return self.suites


def _format_metric(each: MetricValue) -> str:
    return f"{each.value:.4g}" + ("" if each.std is None else f" +- {each.std:.2g}")
