"""Guidance by another checkpoint: a classifier of noisy images, or a weaker model."""

from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion import Denoiser, GuidableModel, Guidance, extrapolate, guide_by_classifier
from lightning_ddpm.diffusion.gaussian_path import GaussianPath, Timestep
from lightning_ddpm.diffusion.guidance import is_any_other
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_file


@final
class ClassifierGuidance(Guidance):
    """Adds w times the gradient of a classifier's log p(y | x_t); Dhariwal & Nichol 2021 (arXiv:2105.05233).

    It guides a model without classes, or the unconditional prediction of one with classes. Each step costs one network
    evaluation and, inside the interval, one forward and backward pass of the classifier.

    Args:
        ckpt: checkpoint of a classifier of noisy images, as configs/digits_classifier.yaml trains it.
        scale, interval: those of :class:`Guidance`.
    """

    def __init__(self, ckpt: str, scale: float = 1.0, interval: tuple[int, int] | None = None) -> None:
        super().__init__(scale, interval)
        self.ckpt = ckpt

    @cached_property
    def classifier(self) -> NoisyClassifier:
        """The classifier, read from the checkpoint at the first use."""
        with torch.inference_mode(False):
            return load(self.ckpt, NoisyClassifier).requires_grad_(False)

    @property
    def class_names(self) -> Sequence[str]:
        return self.classifier.class_names

    def check_model(self, model: GuidableModel) -> None:
        self.check_interval(model)
        _check_compatible(self.ckpt, self.classifier, model)
        if others := model.condition_kinds - {"label"}:
            raise UserError(
                f"a classifier guides unconditional predictions, and this model is conditioned on {min(others)}; omit "
                "the classifier, and guide it without one"
            )
        if model.class_names:
            _check_classes(self.ckpt, self.class_names, model)
            if not model.label_dropout:
                raise UserError(
                    "a classifier guides unconditional predictions, and this model was trained without them: it has "
                    "label_dropout=0; omit the classifier, or train with label_dropout=0.1"
                )

    def __call__(self, denoise: Denoiser, condition: Condition | Tensor) -> Denoiser:
        label = as_condition(condition).label
        assert label is not None
        if self.scale == 0:
            return denoise
        with torch.inference_mode(False):  # otherwise no gradient could pass through its weights
            classifier = self.classifier.to(label.device)

        def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
            return classifier.log_probability(x_t, t, label.clone())

        return guide_by_classifier(denoise, log_probability, lambda t: self.weight(t, outside=0.0))

    def settings(self) -> dict[str, object]:
        return {"sha256": hash_file(locate_checkpoint(self.ckpt))[:12]} | super().settings()


@final
class Autoguidance(Guidance):
    """Moves away from a weaker model: eps_weak + w [eps - eps_weak]; Karras et al. 2024 (arXiv:2406.02507), eq. 3.

    w = 1 is the model itself and w = 0 the weaker one. Both are given the condition, if they take one.

    Args:
        ckpt: checkpoint of the weaker model: smaller, or trained for less time, on the same data.
        scale, interval: those of :class:`Guidance`.
    """

    def __init__(self, ckpt: str, scale: float = 2.0, interval: tuple[int, int] | None = None) -> None:
        super().__init__(scale, interval)
        self.ckpt = ckpt

    @cached_property
    def weaker(self) -> DDPM:
        """The weaker model, read from the checkpoint at the first use."""
        return load(self.ckpt, DDPM).requires_grad_(False)

    def check_model(self, model: GuidableModel) -> None:
        self.check_interval(model)
        _check_compatible(self.ckpt, self.weaker, model)
        _check_classes(self.ckpt, self.weaker.class_names, model)
        if self.weaker.condition_kinds != model.condition_kinds:
            theirs, ours = (
                ", ".join(sorted(each)) or "nothing" for each in (self.weaker.condition_kinds, model.condition_kinds)
            )
            raise UserError(f"{self.ckpt} is conditioned on {theirs} and the model on {ours}; use one with the same")

    def __call__(self, denoise: Denoiser, condition: Condition | Tensor) -> Denoiser:
        condition = as_condition(condition)
        device = next(each.device for each in condition if each is not None)
        weaker = self.weaker.to(device)
        if repr(weaker.parameterization) != repr(denoise.parameterization):
            raise UserError(
                f"{self.ckpt} predicts {weaker.parameterization} and the model {denoise.parameterization}; "
                "use one that predicts the same"
            )
        strong = denoise.conditioned_on(condition) if weaker.condition_kinds else denoise
        weak = weaker.denoiser_for(condition)

        def guided(x_t: Tensor, t: Timestep) -> Tensor:
            w, output = self.weight(t, outside=1.0), strong.call_network(x_t, t)
            if not is_any_other(w, 1):
                return output
            return extrapolate(weak.call_network(x_t, t), output, w, x_t.shape[1])

        return denoise.with_guidance(guided)

    def settings(self) -> dict[str, object]:
        return {"sha256": hash_file(locate_checkpoint(self.ckpt))[:12]} | super().settings()


def _check_compatible(ckpt: str, other: DDPM | NoisyClassifier, model: GuidableModel) -> None:
    """Check that the other checkpoint has the model's image shape and noise schedule."""
    if other.image_shape != model.image_shape:
        theirs, ours = ("x".join(map(str, each.image_shape)) for each in (other, model))
        raise UserError(f"{ckpt} is for images of {theirs} and the model for {ours}; use one for the same shape")
    if not _is_same_path(other.schedule, model.schedule):
        raise UserError(
            f"{ckpt} was trained on another noise schedule, {other.schedule}, than the model, {model.schedule}; "
            "train it on the model's schedule"
        )


def _is_same_path(first: GaussianPath, second: GaussianPath) -> bool:
    """Return whether two paths have the same signal at every timestep, for networks that get x_t on the same scale."""
    if first.T != second.T:
        return False
    shares, other_shares = (each.alpha_bar_at(torch.arange(first.T + 1)).cpu() for each in (first, second))
    scales, other_scales = (each.scale_at(torch.arange(1, first.T)) for each in (first, second))
    if (scales is None) != (other_scales is None):
        return False
    same_scale = scales is None or other_scales is None or torch.allclose(scales, other_scales)
    return same_scale and torch.allclose(shares, other_shares, rtol=1e-6, atol=1e-12)


def _check_classes(ckpt: str, names: Sequence[str], model: GuidableModel) -> None:
    if list(names) != list(model.class_names):
        theirs, ours = (", ".join(each) or "none" for each in (names, model.class_names))
        raise UserError(f"{ckpt} has the classes {theirs} and the model {ours}; use one with the same classes")
