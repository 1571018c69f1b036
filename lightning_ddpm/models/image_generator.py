"""The contract of a LightningModule that generates images, and how to bring your own.

:class:`~lightning_ddpm.models.ddpm.DDPM` is one. Evaluation, memorisation, sample grids, ``sample`` and ``evaluate``
take any other with two attributes and one method::

    class Mine(LightningModule):
        def __init__(self, channels: int, size: int) -> None:
            super().__init__()
            self.image_shape, self.values = (channels, size, size), UINT8

        def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
            noise = ImageNoise(request.seed, start, stop)
            z = noise(torch.empty(stop - start, 64, device=self.device))
            return self.values.to_data(self.decoder(z))

Image i must depend on the weights, the seed and i alone, as the random numbers of ``ImageNoise`` do: then the images
are the same in batches of any size and on any number of devices. Samplers, guidance, classes, other conditions and the
variational bound belong to diffusion models: they are refused for other modules.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.data.value_range import DTYPES, UINT8, ValueRange
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.contracts import check_call, describe_class
from lightning_ddpm.utils.errors import UserError


class ImageGenerator(Protocol):
    """A LightningModule that generates images; the rules are in the description of this module.

    Attributes:
        image_shape: (channels, height, width) of the images.
        values: type and range of their values.
        device: that of every LightningModule.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def values(self) -> ValueRange: ...

    @property
    def device(self) -> torch.device: ...

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        """Return images ``start``..``stop`` of the request, (stop - start, c, h, w) of the type of the values."""


def require_generator(module: LightningModule, source: str = "") -> ImageGenerator:
    """Return the module, which must generate images.

    Args:
        module: any module.
        source: the file that holds it; empty for the module of a run.

    Raises:
        UserError: it lacks an attribute or the method, or has something else in its place.
    """
    missing = [each for each in ("image_shape", "values", "generate") if not hasattr(module, each)]
    if missing:
        where, fix = (f"{source} holds", "give another checkpoint") if source else ("got", "remove the callback")
        raise UserError(
            f"generating images needs a module with image_shape, values and generate, as DDPM has them, {where} "
            f"{describe_class(type(module))} without {' and '.join(missing)}; {fix}"
        )
    model = cast(ImageGenerator, module)
    shape: object = model.image_shape
    values: object = model.values
    is_shape = isinstance(shape, Sequence) and len(shape) == 3 and all(isinstance(each, int) for each in shape)
    if not is_shape or not isinstance(values, ValueRange):
        raise UserError(
            f"{describe_class(type(module))} must have image_shape (channels, height, width), three ints, and values, "
            f"a ValueRange such as UINT8; got {shape!r} and {values!r}"
        )
    check_call(module, model.generate, "request, start, stop")
    return model


def check_request(model: ImageGenerator, request: SampleRequest) -> None:
    """Refuse a sampler, guidance, classes or other conditions that do not fit the model.

    Raises:
        UserError: the model is no diffusion model, or one that they do not fit.
    """
    if isinstance(model, DDPM):
        check_sampling(model, request.sampler or model.sampler, request.guidance)
        return
    for name in ("sampler", "guidance", "labels", "conditions"):
        if getattr(request, name) is not None:
            refuse_option(model, name)


def check_sampling(model: DDPM, sampler: Sampler, guidance: Guidance | None) -> None:
    """Refuse a sampler or guidance that does not fit the model, or each other, before any work.

    Raises:
        UserError: they do not fit.
    """
    denoise = model.denoiser
    sampler.check_path(model.schedule)
    if guidance:
        guidance.check_model(model)
        denoise = guidance(denoise, torch.zeros(1, dtype=torch.long, device=model.device))
    sampler.check_denoiser(denoise)


def refuse_option(model: ImageGenerator, option: str) -> None:
    """Raise UserError: the option is one of diffusion models, and the model is none."""
    raise UserError(f"{option} needs a DDPM, and {type(model).__name__} generates its images without it; remove it")


def require_uint8(
    model: ImageGenerator, what: str, fix: str = "leave it out, and look at val/loss, sample grids and samples"
) -> None:
    """Refuse a model whose images do not have 256 levels, of which feature networks and restoration are made.

    Args:
        model: the model.
        what: needs them, for the message.
        fix: what to do without it, for the message.

    Raises:
        UserError: the model has other values.
    """
    if model.values != UINT8:
        raise UserError(
            f"{what} needs images of uint8 with values 0..255, and the model's are {model.values.dtype} "
            f"{model.values.describe()}; {fix}"
        )


def check_images(model: ImageGenerator, images: object, n: int) -> None:
    """Check what :meth:`ImageGenerator.generate` returned for n images.

    Raises:
        UserError: it is no tensor of the shape and type that the model states.
    """
    shape, dtype = (n, *model.image_shape), DTYPES[model.values.dtype]
    if not isinstance(images, Tensor) or tuple(images.shape) != shape or images.dtype != dtype:
        got = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"{describe_class(type(model))}.generate must return {n} images as a tensor {shape} {dtype}, got {got}; "
            "values.to_data makes one of floats in [-1, 1]"
        )


def name_sampler(model: ImageGenerator, request: SampleRequest | None = None) -> str:
    """Return what generates the model's images: its sampler or that of the request, or the model's own class."""
    if not isinstance(model, DDPM):
        return type(model).__name__
    return str(request.sampler if request and request.sampler else model.sampler)


def count_nfe(model: ImageGenerator, request: SampleRequest) -> int | None:
    """Return the number of network evaluations of an image, with guidance; ``None`` where it is not known before."""
    if not isinstance(model, DDPM):
        return None
    nfe = (request.sampler or model.sampler).nfe(model.schedule.T)
    return nfe and nfe * (request.guidance.nfe if request.guidance else 1)
