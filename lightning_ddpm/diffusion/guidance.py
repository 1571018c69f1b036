"""Sampling images of a class, by a classifier or without one.

Dhariwal & Nichol 2021 (arXiv:2105.05233); Ho & Salimans 2022 (arXiv:2207.12598). Guidance makes a denoiser of a
denoiser: neither the network nor the sampler learns of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import scale
from lightning_ddpm.diffusion.schedule import NoiseSchedule
from lightning_ddpm.utils.errors import UserError

LogProbability = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), t (b,)) -> (b,) log p(y | x_t) of the wanted y, by a classifier of noisy images."""

Weight = Callable[[Tensor], Tensor]
"""t (b,) -> (b,) how strongly to guide there."""


class GuidableModel(Protocol):
    """What guidance must know of a model to say whether it can guide it.

    Attributes:
        schedule: its noise schedule.
        image_shape: (channels, height, width).
        class_names: what its labels mean; empty for a model without classes.
        label_dropout: how often it was trained without the class.
    """

    schedule: NoiseSchedule
    class_names: Sequence[str]
    label_dropout: float

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""


class Guidance(ABC):
    """Makes images more of a class, or better; with w = 1 exactly of it.

    Args:
        scale: w.
        interval: guide at the steps from this to that alone (Kynkäänniemi et al. 2024, arXiv:2404.07724); ``null`` for
            all of 1..T.
    """

    def __init__(self, scale: float = 1.0, interval: tuple[int, int] | None = None) -> None:
        if not 0 <= scale < float("inf"):
            raise UserError(f"the scale of guidance is at least 0 and finite, got {scale}; 0 is unconditional, 1 exact")
        if interval is not None and not 1 <= interval[0] <= interval[1]:
            raise UserError(
                f"guidance is given from one step to a later one, of 1..T, got {interval[0]} to {interval[1]}"
            )
        self.scale, self.interval = float(scale), interval

    @property
    def class_names(self) -> Sequence[str]:
        """What labels mean to the guide; empty where the model alone knows."""
        return ()

    @property
    def nfe(self) -> int:
        """Evaluations of the model's own network that one of its predictions takes, where it is guided."""
        return 1

    @abstractmethod
    def check_model(self, model: GuidableModel) -> None:
        """Refuse a model that cannot be guided so, before any work.

        Raises:
            UserError: what does not go together.
        """

    @abstractmethod
    def __call__(self, denoise: Denoiser, label: Tensor) -> Denoiser:
        """The model, guided.

        Args:
            denoise: the model; its network takes labels (b,) int64 as its third argument where it has classes, and
                without it, or with -1, is that of no class.
            label: (b,) of the images of every batch that will be denoised.

        Returns:
            What a sampler takes for a model.
        """

    def check_interval(self, model: GuidableModel) -> None:
        """Refuse an interval that lies beyond the schedule."""
        if self.interval is not None and self.interval[1] > model.schedule.T:
            raise UserError(f"guidance is asked for up to t={self.interval[1]}, and T is {model.schedule.T}; lower it")

    def is_active(self, t: Tensor) -> Tensor:
        """(b,) whether to guide at these steps."""
        low, high = self.interval or (0, float("inf"))
        return (t >= low) & (t <= high)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.settings().items())})"

    def settings(self) -> dict[str, object]:
        """What :func:`repr` says."""
        return {"scale": self.scale} | ({"interval": self.interval} if self.interval else {})


@final
class ClassifierFree(Guidance):
    """eps^(x_t) + w [eps^(x_t, y) - eps^(x_t)]; Ho & Salimans 2022, eq. 6, whose own w is this one less 1.

    As all predictions are linear in each other given x_t, it is the same for any of them. A learned variance is that
    given y. One network call a step, of twice the batch; outside the interval, and with w = 0 or 1, of the batch
    itself. Outside, the network is that given y.
    """

    @property
    def nfe(self) -> int:
        return 1 if self.scale in (0, 1) else 2

    def check_model(self, model: GuidableModel) -> None:
        self.check_interval(model)
        if not model.class_names:
            raise UserError(
                "the model was trained without classes and can be given none; guide it by a classifier of noisy images "
                "(--classifier), or train one with classes, as configs/digits_conditional.yaml does"
            )
        if self.scale != 1 and not model.label_dropout:
            raise UserError(
                f"guidance of scale {self.scale:g} needs a model that was also trained without the class, and this one "
                "has label_dropout=0; take scale 1, or train with label_dropout=0.1"
            )

    def __call__(self, denoise: Denoiser, label: Tensor) -> Denoiser:
        if self.scale == 0 and self.interval is None:
            return denoise  # not even rounding differs
        conditional = denoise.conditioned_on(label)
        if self.scale == 1:
            return conditional

        def guided(x_t: Tensor, t: Tensor) -> Tensor:
            within = self.is_active(t)
            if self.interval is not None and not within.any():
                return conditional.network(x_t, t)
            labels = torch.cat([label, torch.full_like(label, -1)])
            of_class, free = denoise.network(torch.cat([x_t, x_t]), torch.cat([t, t]), labels).chunk(2)
            return extrapolate(free, of_class, torch.where(within, self.scale, 1.0), x_t.shape[1])

        return denoise.with_network(guided)


def extrapolate(weaker: Tensor, stronger: Tensor, weight: Tensor, channels: int) -> Tensor:
    """weaker + w [stronger - weaker] of the first channels, a prediction; the others, a variance, as ``stronger``'s."""
    prediction = weaker[:, :channels] + scale(weight, stronger[:, :channels] - weaker[:, :channels])
    return torch.cat([prediction, stronger[:, channels:]], dim=1)


def guide_by_classifier(denoise: Denoiser, log_probability: LogProbability, weight: Weight) -> Denoiser:
    """eps^ - w sqrt(1 - alpha_bar_t) grad log p(y | x_t); Dhariwal & Nichol 2021, Algorithm 2.

    The score of q(x_t) p(y | x_t)^w: with w = 1, of q(x_t | y).

    Args:
        denoise: the model, whatever its network predicts.
        log_probability: of the classifier; asked only where some weight is not 0.
        weight: w.
    """
    unclipped = denoise.without_clipping()

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        denoised, w = unclipped(x_t, t), weight(t)
        eps = denoised.eps
        if w.any():
            with torch.inference_mode(False), torch.enable_grad():
                x = x_t.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(log_probability(x, t.clone()).sum(), x)
            eps = eps - scale(w * denoise.schedule.noise_at(t), gradient)
        return eps if denoised.nu is None else torch.cat([eps, 2 * denoised.nu - 1], dim=1)

    return Denoiser(guided, denoise.schedule, denoise.clip)
