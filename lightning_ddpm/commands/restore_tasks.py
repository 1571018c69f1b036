"""The tasks of ``restore``: what is known of each image, and the sampler that fills in the rest."""

from abc import ABC, abstractmethod

import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_ddpm.data.image_io import read_image
from lightning_ddpm.diffusion import (
    DDRM,
    Ancestral,
    Degradation,
    Downsample,
    FixedSmall,
    Grayscale,
    Identity,
    MarkovSampler,
    RePaint,
    Sampler,
    SDEdit,
)
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import ImageNoise


class Task(ABC):
    """What is done to images.

    Attributes:
        options: of the command line that are this task's.
        needed: those of them that must be given.
        shape: (channels, size) of the pictures that it takes.
    """

    options: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        self.asked, self.model = asked, model
        self.shape = model.image_shape[:2]

    @abstractmethod
    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        """For a batch (b, c, h, w) in [-1, 1]: what is given, as large as the model's images, and how it is restored.

        Args:
            x: the pictures, whole ones if they are to be degraded.
            noise: for the degradation.
        """

    def _build_sampler(self, default: int) -> MarkovSampler:
        """The sampler that was asked for, or ancestral sampling with as many steps as were."""
        if not self.asked.sampler:
            return Ancestral(FixedSmall(), min(self.asked.steps or default, self.model.schedule.T))
        if not isinstance(self.model.sampler, MarkovSampler):
            raise UserError(
                f"{self.asked.task} goes back and forth, which {type(self.model.sampler).__name__} cannot; take "
                "Ancestral or DDIM, or leave --sampler out"
            )
        return self.model.sampler


class InpaintTask(Task):
    """Pixels under a mask are made anew."""

    options = "mask", "box", "passes", "jump", "degrade"

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        super().__init__(asked, model)
        if (asked.mask is None) == (asked.box is None):
            raise UserError("inpaint needs --mask FILE or --box LEFT TOP RIGHT BOTTOM, one of them")
        self.known = ~(self._box() if asked.mask is None else self._picture())
        if not self.known.any():
            raise UserError("the mask leaves no pixel known; sample draws images of which nothing is")
        self.sampler = self._build_sampler(100)

    def _box(self) -> Tensor:
        left, top, right, bottom = self.asked.box
        size = self.shape[1]
        if not (0 <= left < right <= size and 0 <= top < bottom <= size):
            raise UserError(f"the box must lie in the picture of {size}x{size}, got {left} {top} {right} {bottom}")
        hole = torch.zeros(1, size, size, dtype=torch.bool)
        hole[:, top:bottom, left:right] = True
        return hole

    def _picture(self) -> Tensor:
        size = self.shape[1]
        try:
            mask = read_image(self.asked.mask, 1, 1)
            if mask.size == (size, size):
                return read_image(self.asked.mask, 1, size).pixels > 127
        except UserError as error:
            raise UserError(f"{self.asked.mask}: {error}") from error
        raise UserError(
            f"the mask {self.asked.mask} is {mask.size[0]}x{mask.size[1]} and the model's images are {size}x{size}; "
            "resize it"
        )

    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        known = self.known.to(x.device)
        inpainting = RePaint(self.sampler, x, known, self.asked.passes or 5, self.asked.jump or 5)
        return torch.where(known, x, 0.0), inpainting


class LinearTask(Task):
    """Undoes a linear degradation by DDRM."""

    options: tuple[str, ...] = ("sigma", "degrade")

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        super().__init__(asked, model)
        if asked.sampler:
            raise UserError(f"{asked.task} is done by DDRM, which is a sampler of its own; leave --sampler out")
        self.degradation = self.build_degradation()
        self.steps = min(asked.steps or 20, model.schedule.T)
        whole = torch.zeros(1, *model.image_shape)
        y = self.degradation(whole)
        DDRM(self.degradation, y, asked.sigma or 0.0, self.steps)  # refuses what it cannot undo
        if not asked.degrade:
            self.shape = y.shape[1], y.shape[2]

    @abstractmethod
    def build_degradation(self) -> Degradation:
        """What was done to the images."""

    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        y, sigma = x, self.asked.sigma or 0.0
        if self.asked.degrade:
            y = self.degradation(x)
            y = y + sigma * noise(y)
        channels, size = self.model.image_shape[:2]
        given = interpolate(y, size, mode="bicubic").clamp(-1, 1) if y.shape[-1] < size else y
        return given.expand(-1, channels, -1, -1), DDRM(self.degradation, y, sigma, self.steps)


class SuperResolutionTask(LinearTask):
    """Larger images; what is given is the mean of each block of factor x factor pixels."""

    options = "factor", "sigma", "degrade"
    needed = ("factor",)

    def build_degradation(self) -> Degradation:
        return Downsample(self.asked.factor)


class DenoiseTask(LinearTask):
    """Takes Gaussian noise away."""

    needed = ("sigma",)

    def build_degradation(self) -> Degradation:
        return Identity()


class ColorizeTask(LinearTask):
    """Colours for grey images, which are the mean of the three channels."""

    def build_degradation(self) -> Degradation:
        return Grayscale()


class SDEditTask(Task):
    """Noise part of the way, and back."""

    options = needed = ("strength",)

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        super().__init__(asked, model)
        self.sampler = self._build_sampler(100)
        SDEdit(self.sampler, torch.zeros(model.image_shape), asked.strength)  # refuses a strength that is none

    def prepare(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        return x, SDEdit(self.sampler, x, self.asked.strength)


TASKS: dict[str, type[Task]] = {
    "inpaint": InpaintTask,
    "superres": SuperResolutionTask,
    "denoise": DenoiseTask,
    "colour": ColorizeTask,
    "vary": SDEditTask,
}
