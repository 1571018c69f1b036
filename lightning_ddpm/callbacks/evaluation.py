"""Generates images in the course of training and says how good they are."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks.interval import Interval
from lightning_ddpm.callbacks.run_logger import get_writers
from lightning_ddpm.callbacks.sampling import (
    generate_images,
    get_ranks,
    module_on_device,
    prepare_evaluation,
    require_ddpm,
    require_image_data,
)
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.metrics import FeatureExtractor, MetricSuite, MetricValue, RequestedClasses
from lightning_ddpm.metrics.frechet import BATCH
from lightning_ddpm.metrics.suite import check_metrics, list_metric_names
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import format_duration, report, show_progress
from lightning_ddpm.utils.errors import UserError


class Evaluation(Callback):
    """Figures of n generated images against the un-augmented training set, by all ranks together, on EMA weights.

    The same n images' noise every time, and one pass of the feature network for all figures. In fit at an interval, and
    not in the sanity check, they are logged as ``val/<figure>``, the figure's name saying the feature network; each is
    known on every rank and usable as ``monitor`` of a checkpoint. In validate they are ``val/<figure>`` too, in test
    ``test/<figure>``.

    Without an interval there is one evaluation, when training has ended and last.ckpt is written, logged as
    ``final/<figure>``. A run that is resumed at its end makes it again; validate and test do not.

    Attributes:
        evaluated: the step of the last evaluation.
        seconds: what each evaluation has taken since fit began; max_share goes by the first rank's.

    Args:
        extractor: the feature network; Inception's distance is the FID.
        n: images to generate; 50,000 for a figure to publish.
        metrics: which of fid, kid, pr (precision and recall), is (Inception Score) and accuracy (how often the
            network sees the class asked for: ``val/accuracy_...`` and, of each class, ``val/accuracy_.../class``).
        sampler: how; ``null`` for the model's own.
        every_n_steps: of the optimizer, or
        every_n_epochs: one of the two, or neither: once, at the end.
        max_share: what evaluations at the interval may take of the time since fit began, in (0, 1]; one that would
            bring them above it, by the longest before it or else by the estimate, is left out. ``null``: no limit.
        batch_size: images generated at a time.
        seed: of the set of images.
        guidance: towards the images' classes, which are as often as in the training data; ``null`` for none beyond
            telling the network.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        n: int,
        metrics: Sequence[str] = ("fid",),
        sampler: Sampler | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        max_share: float | None = None,
        batch_size: int = 64,
        seed: int = 0,
        guidance: Guidance | None = None,
    ) -> None:
        if n < 2 or batch_size < 1:
            raise UserError(f"an evaluation needs at least 2 images in batches of at least 1, got {n} and {batch_size}")
        if max_share is not None and not 0 < max_share <= 1:
            raise UserError(f"max_share is a share of the run's time, above 0 and at most 1, got {max_share}; try 0.1")
        if max_share is not None and every_n_steps is None and every_n_epochs is None:
            raise UserError("max_share is of evaluations at an interval; give every_n_steps, or leave max_share out")
        check_metrics(metrics, n)
        self.extractor, self.metrics = extractor, metrics
        self.request = SampleRequest(n, seed, batch_size, sampler, guidance)
        at_end = every_n_steps is None and every_n_epochs is None
        self.interval = None if at_end else Interval(every_n_steps, every_n_epochs)
        self.max_share = max_share
        self.suite: MetricSuite | None = None
        self.evaluated = -1
        self.found: dict[str, float] = {}
        self.seconds: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the extractor's weights, on the first rank first: what is missing is said before any work."""
        if stage == "predict" or (self.interval is None and stage != "fit"):
            return
        prepare_evaluation(trainer, pl_module, self.extractor, self.request)
        if "fid" in self.metrics and self.request.n < self.extractor.num_features and trainer.is_global_zero:
            warnings.warn(
                f"{self.request.n} images do not fill the covariance of {self.extractor.num_features} features: "
                f"{self.extractor.metric} will be far off; generate at least {self.extractor.num_features}",
                stacklevel=2,
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self.seconds = time.monotonic(), []
        self._prepare(trainer, pl_module)
        cost = self.estimate_cost(trainer, require_ddpm(pl_module))
        if trainer.is_global_zero:
            report(f"evaluation{'' if self.interval else ' at the end'}: {cost}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval:
            self.interval.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval and self.interval.after_batch(trainer):
            self._log(trainer, pl_module, on_step=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval and self.interval.after_epoch(trainer):
            self._log(trainer, pl_module, on_step=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval and trainer.state.fn == "validate":
            pl_module.log_dict(self.evaluate(trainer, pl_module))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval:
            pl_module.log_dict(self.evaluate(trainer, pl_module, "test"))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The one at the end; who is killed here resumes here, with no step left."""
        if self.interval or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with module_on_device(trainer, pl_module):
            found = self.evaluate(trainer, pl_module, "final")
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})
        _log_now(trainer, found)

    def _log(self, trainer: Trainer, module: LightningModule, on_step: bool) -> None:
        if not self._affordable(trainer):
            return
        self.found = self.evaluate(trainer, module)
        module.log_dict(self.found, on_step=on_step, on_epoch=not on_step, logger=False)
        _log_now(trainer, self.found)

    def _affordable(self, trainer: Trainer) -> bool:
        """Whether max_share has room for an evaluation now; the first rank's clock decides for all."""
        if self.max_share is None:
            return True
        expected = max(self.seconds, default=self._estimate)
        share = (sum(self.seconds) + expected) / (time.monotonic() - self._began + expected)
        affordable = trainer.strategy.broadcast(share <= self.max_share)
        if not affordable and trainer.is_global_zero:
            report(
                f"step {trainer.global_step}: evaluation left out: with another {format_duration(expected)}, evaluations "
                f"would have {share:.2g} of the time, and max_share is {self.max_share:g}"
            )
        return affordable

    def evaluate(self, trainer: Trainer, module: LightningModule, stage: str = "val") -> dict[str, float]:
        """The figures now, on all ranks, as ``stage/<figure>``; every rank must call."""
        started = time.monotonic()
        figures = self._prepare(trainer, module)
        for start, pixels in generate_images(trainer, module, self.request, "evaluation"):
            figures.update(start, pixels)
        found = trainer.strategy.broadcast(figures.compute(get_ranks(trainer)))
        self.evaluated = trainer.global_step
        self.seconds.append(time.monotonic() - started)
        if trainer.is_global_zero:
            said = ", ".join(f"{stage}/{name} {_format_metric(each)}" for name, each in found.items())
            report(f"step {trainer.global_step}: {said} ({self.request.n} images)")
        return {f"{stage}/{name}": each.value for name, each in found.items()}

    def estimate_cost(self, trainer: Trainer, model: DDPM) -> str:
        """What one evaluation takes, from one timed batch of images and one of features, in words."""
        evaluations = (self.request.sampler or model.sampler).nfe(model.schedule.T)
        guided = self.request.guidance.nfe if self.request.guidance else 1
        size, judged = min(self.request.batch_size, self.request.n), min(BATCH, self.request.n)
        pixels = torch.zeros(judged, *model.image_shape, dtype=torch.uint8, device=model.device)
        with evaluation_mode(model):
            with trainer.precision_plugin.forward_context():
                if evaluations is None:  # the images decide: a batch of them is drawn
                    drawing = _time_call(lambda: model.generate(self.request, 0, size))
                else:
                    denoise, x, _ = model.prepare_sampling(self.request, 0, size)
                    drawing = evaluations * _time_call(lambda: denoise(x, model.schedule.T // 2 + 1).x_0)
            judging = _time_call(lambda: self.extractor(pixels))
        drawing, judging = (
            seconds * math.ceil(math.ceil(self.request.n / batch) / trainer.world_size)
            for seconds, batch in ((drawing, size), (judging, judged))
        )
        self._estimate = drawing + judging
        if evaluations is None:
            count = f"as many network evaluations as {self.request.n} images take"
        else:
            count = f"{self.request.n} images x {evaluations * guided} network evaluations"
        return (
            f"{count}, about {format_duration(self._estimate)}, {format_duration(judging)} of it for features; "
            f"{', '.join(self._logged())} by {self.extractor.protocol}; {self.reference}"
        )

    def _logged(self) -> list[str]:
        stage = "val" if self.interval else "final"
        return [f"{stage}/{name}" for name in list_metric_names(self.extractor.metric, self.metrics)]

    def _classes(self, model: DDPM) -> RequestedClasses | None:
        labels = model.choose_labels(self.request, 0, self.request.n)
        return None if labels is None else RequestedClasses(labels, model.list_class_names(self.request.guidance))

    def _prepare(self, trainer: Trainer, module: LightningModule) -> MetricSuite:
        if self.suite is None:
            data = require_image_data(trainer, "Evaluation compares with an ImageDataModule's training set")
            self.suite = MetricSuite(
                self.extractor, module.device, self.metrics, self.request.n, self._classes(require_ddpm(module))
            )
            show = partial(show_progress, what="reference", show=trainer.is_global_zero, bar=False)
            self.reference = self.suite.set_reference(data.reference_images(), None, get_ranks(trainer), show)
            sampler, guidance = self.request.sampler or require_ddpm(module).sampler, self.request.guidance
            protocol = f"n={self.request.n}, sampler {sampler}, seed={self.request.seed}"
            protocol += f", guidance {guidance}" if guidance else ""
            for writer in get_writers(trainer):
                for name in self._logged():
                    writer.add_text(f"{name}/protocol", f"{protocol}, {self.extractor.protocol}, {self.reference}")
        return self.suite


def _log_now(trainer: Trainer, found: Mapping[str, float]) -> None:
    """At this very step, whatever log_every_n_steps is."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(found), step=trainer.global_step - 1)  # Lightning counts from 0


def _time_call(work: Callable[[], Tensor]) -> float:
    """Seconds that it takes the second time, with all the device does."""
    float(work().sum())  # waits for the device
    started = time.monotonic()
    float(work().sum())
    return time.monotonic() - started


def _format_metric(each: MetricValue) -> str:
    return f"{each.value:.4g}" + ("" if each.std is None else f" +- {each.std:.2g}")
