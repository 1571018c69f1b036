"""The tasks of ``restore``: each defines what is known of an image and the sampler that restores the rest."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_ddpm.data.image_io import read_image
from lightning_ddpm.diffusion import Ancestral, ClassifierFree, FixedSmall, MarkovSampler, RePaint, Sampler, SDEdit
from lightning_ddpm.diffusion.samplers.ddrm import DDRM, Degradation, Downsample, Grayscale, Identity
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import ImageNoise

STEPS, PASSES, JUMP = 100, 5, 5
"""Defaults: steps of ancestral sampling, and RePaint's passes and steps in a block."""


def choose_markov_sampler(task: str, sampler: Sampler | None, steps: int | None, model: DDPM) -> MarkovSampler:
    """Return the sampler whose steps a task makes.

    Args:
        task: its name, for the message.
        sampler: the requested one; ``None`` for ancestral sampling.
        steps: of ancestral sampling; ``None`` for :data:`STEPS`.
        model: the model.

    Raises:
        UserError: the requested one makes no single steps.
    """
    if sampler is None:
        return Ancestral(FixedSmall(), steps or min(STEPS, model.schedule.T))
    if not isinstance(sampler, MarkovSampler):
        raise UserError(
            f"{task} needs a sampler that takes single steps, got {type(sampler).__name__}; use Ancestral or DDIM, or "
            "leave --sampler out"
        )
    return sampler


def build_repaint(sampler: MarkovSampler, image: Tensor, known: Tensor, passes: int | None) -> RePaint:
    """Return the sampler that fills in the unknown pixels of images (b, c, h, w) in [-1, 1]; ``known`` is 1, h, w."""
    return RePaint(sampler, image, known, passes=passes or PASSES, jump=JUMP)


def hide_unknown_condition(request: SampleRequest, model: DDPM) -> SampleRequest:
    """Return the request, for predictions without a condition where it states none: what images show is unknown."""
    if not model.condition_kinds or request.labels is not None or request.conditions is not None:
        return request
    return replace(request, guidance=ClassifierFree(0.0))


class Task(ABC):
    """A way to restore or edit images.

    Attributes:
        option_names: command line options that belong to this task.
        required: those of them that must be given.
        shape: (channels, height, width) of the images that the task takes.
    """

    option_names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    def __init__(self, options: Namespace, model: DDPM) -> None:
        self.options, self.model = options, model
        self.shape = model.image_shape

    @abstractmethod
    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        """Return what is given of a batch (b, c, h, w) in [-1, 1], in the model's size, and the sampler to restore it.

        Args:
            x: the images; the originals if they are to be degraded.
            noise: for the degradation.
        """

    def _build_sampler(self) -> MarkovSampler:
        """Return the requested sampler, or ancestral sampling with the requested number of steps."""
        requested = self.model.sampler if self.options.sampler else None
        return choose_markov_sampler(self.options.task, requested, self.options.steps, self.model)


class InpaintTask(Task):
    """Generates the pixels under a mask, given the others."""

    option_names = "mask", "box", "passes", "degrade"

    def __init__(self, options: Namespace, model: DDPM) -> None:
        super().__init__(options, model)
        if (options.mask is None) == (options.box is None):
            raise UserError("inpaint needs either --mask FILE or --box LEFT TOP RIGHT BOTTOM")
        self.known = ~(self._make_box() if options.mask is None else self._read_mask())
        if not self.known.any():
            raise UserError("the mask leaves no pixel known; use `sample` to generate whole images")
        self.sampler = self._build_sampler()

    def _make_box(self) -> Tensor:
        left, top, right, bottom = self.options.box
        _, height, width = self.shape
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UserError(f"the box must lie in the image of {width}x{height}, got {left} {top} {right} {bottom}")
        hole = torch.zeros(1, height, width, dtype=torch.bool)
        hole[:, top:bottom, left:right] = True
        return hole

    def _read_mask(self) -> Tensor:
        _, height, width = self.shape
        try:
            mask = read_image(self.options.mask, 1, 1)
            if mask.size == (width, height):
                return read_image(self.options.mask, 1, (height, width)).pixels > 127
        except UserError as error:
            raise UserError(f"{self.options.mask}: {error}") from error
        raise UserError(
            f"the mask {self.options.mask} is {mask.size[0]}x{mask.size[1]} and the model's images are "
            f"{width}x{height}; resize it"
        )

    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        known = self.known.to(x.device)
        return torch.where(known, x, 0.0), build_repaint(self.sampler, x, known, self.options.passes)


class LinearTask(Task):
    """Inverts a linear degradation by DDRM."""

    option_names: tuple[str, ...] = ("sigma", "degrade")

    def __init__(self, options: Namespace, model: DDPM) -> None:
        super().__init__(options, model)
        if options.sampler:
            raise UserError(f"{options.task} always uses DDRM; leave --sampler out")
        self.degradation = self.build_degradation()
        self.steps = options.steps or min(20, model.schedule.T)
        y = self.degradation(torch.zeros(1, *model.image_shape))
        # both raise UserError for options that cannot be used
        DDRM(self.degradation, y, options.sigma or 0.0, self.steps).nfe(model.schedule.T)
        if not options.degrade:
            self.shape = y.shape[1], y.shape[2], y.shape[3]

    @abstractmethod
    def build_degradation(self) -> Degradation:
        """Return the degradation of the given images."""

    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        y, sigma = x, self.options.sigma or 0.0
        if self.options.degrade:
            y = self.degradation(x)
            y = y + sigma * noise(y)
        channels, *sides = self.model.image_shape
        given = interpolate(y, sides, mode="bicubic").clamp(-1, 1) if list(y.shape[2:]) != sides else y
        return given.expand(-1, channels, -1, -1), DDRM(self.degradation, y, sigma, self.steps)


class SuperResolutionTask(LinearTask):
    """Enlarges images; a given pixel is the mean of a block of factor x factor pixels."""

    option_names = "factor", "sigma", "degrade"
    required = ("factor",)

    def build_degradation(self) -> Degradation:
        return Downsample(self.options.factor)


class DenoiseTask(LinearTask):
    """Removes Gaussian noise."""

    required = ("sigma",)

    def build_degradation(self) -> Degradation:
        return Identity()


class ColorizeTask(LinearTask):
    """Colorizes grayscale images; a given pixel is the mean of the three channels."""

    def build_degradation(self) -> Degradation:
        return Grayscale()


class SDEditTask(Task):
    """Makes variations of images: adds noise for a share of the steps and denoises from there."""

    option_names = required = ("strength",)

    def __init__(self, options: Namespace, model: DDPM) -> None:
        super().__init__(options, model)
        self.sampler = self._build_sampler()
        sdedit = SDEdit(self.sampler, torch.zeros(model.image_shape), options.strength)
        sdedit.nfe(model.schedule.T)  # raises UserError, as the line before does, for a bad strength

    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        return x, SDEdit(self.sampler, x, self.options.strength)


TASKS: dict[str, type[Task]] = {
    "inpaint": InpaintTask,
    "superres": SuperResolutionTask,
    "denoise": DenoiseTask,
    "colorize": ColorizeTask,
    "sdedit": SDEditTask,
}
