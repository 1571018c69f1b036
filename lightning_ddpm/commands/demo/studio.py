"""Images that are generated, inpainted or interpolated, frame by frame as sampling goes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lightning_ddpm.commands.demo.settings import MAX_SEED, Choices, Settings, check_number
from lightning_ddpm.commands.restore_tasks import build_repaint, choose_markov_sampler, hide_unknown_condition
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.data.previews import choose_preview
from lightning_ddpm.diffusion import Sampler
from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import Noise
from lightning_ddpm.diffusion.samplers.ddim import slerp
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import count_nfe, require_uint8
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import ImageNoise

MAX_PASSES = 20
FRAME_SECONDS = 0.1
"""Shortest time between two frames."""
FRAME_SHARE = 0.2
"""Largest share of the time that frames may take."""
STRIP = 12
"""Number of images in the strip from noise to image."""


class Frame(NamedTuple):
    """A moment of sampling.

    Attributes:
        pixels: (n, 1 or 3, h, w) uint8 on the CPU: x_t to look at, and in the last frame the images.
        titles: the class of each image where they are of several; may be empty.
        strip: (k, 1 or 3, h, w) uint8, the first image on its path from noise; empty but in the last frame.
        step: number of steps done.
        nfe: network evaluations of each image until now.
        total: those of the whole; ``None`` if they depend on the image.
        seconds: since the start.
        is_last: whether these are the images.
    """

    pixels: Tensor
    titles: Sequence[str]
    strip: Tensor
    step: int
    nfe: float
    total: int | None
    seconds: float
    is_last: bool


class Studio:
    """Generates images from one model, one request at a time.

    Args:
        model: on its device, in evaluation mode.
        fabric: for the precision of the network.
        evaluations: a list to which every network evaluation appends its number of images.
        max_images: largest number of images of a request.

    Attributes:
        choices: what there is to choose.
        why_no_inpainting: a sentence; ``None`` where images can be inpainted.
    """

    def __init__(self, model: DDPM, fabric: Fabric, evaluations: list[int], max_images: int) -> None:
        self.model, self.fabric, self.choices = model, fabric, Choices(model, max_images)
        self._evaluations, self._turn = evaluations, Lock()
        self._shown_by = choose_preview(model.values, model.image_shape[0])
        self.why_no_inpainting = _explain_no_inpainting(model)

    def generate(self, settings: Settings) -> Iterator[Frame]:
        """Yield the frames of generating n images: those that ``sample`` writes with the same settings."""
        request = self.choices.make_request(settings)
        denoise, x_T, noise = self.model.prepare_sampling(request, 0, request.n)
        labels, names = self.model.choose_labels(request, 0, request.n), self.model.class_names
        titles = [names[each] for each in labels.tolist()] if labels is not None and settings.label is None else []
        yield from self._watch(request, request.sampler or self.model.sampler, denoise, x_T, noise, titles)

    def inpaint(self, settings: Settings, pixels: Tensor, hole: Tensor, passes: int) -> Iterator[Frame]:
        """Yield the frames of filling in a part of an image in n ways, as ``restore --task inpaint`` does.

        Args:
            settings: of the request.
            pixels: (c, h, w) uint8.
            hole: (1, h, w) bool, true where pixels are to be generated.
            passes: number of times each step is made.
        """
        if self.why_no_inpainting:
            raise UserError(self.why_no_inpainting)
        passes = check_number("the number of passes", passes, 1, MAX_PASSES)
        request = hide_unknown_condition(self.choices.make_request(settings), self.model)
        if not hole.any() or hole.all():
            raise UserError("paint over a part of the image: what is painted is generated, and the rest is kept")
        sampler = choose_markov_sampler("inpainting", request.sampler, None, self.model)
        denoise, x_T, noise = self.model.prepare_sampling(request, 0, request.n)
        image, known = to_float(pixels[None].to(x_T.device)), ~hole.to(x_T.device)
        yield from self._watch(request, build_repaint(sampler, image, known, passes), denoise, x_T, noise)

    def interpolate(self, settings: Settings, second_seed: int) -> Iterator[Frame]:
        """Yield the frames of n images, from the first image of the seed to that of another seed.

        x_T is interpolated on the great circle, as in Song et al. 2021 (arXiv:2010.02502), 5.3. All images are of the
        first one's class, and a sampler that adds noise adds the same to all of them.
        """
        second_seed = check_number("the second seed", second_seed, 0, MAX_SEED)
        request = self.choices.make_request(settings)
        if request.n < 2:
            raise UserError("an interpolation has two ends: take at least 2 images")
        label = self.model.choose_labels(request, 0, 1)
        labels = None if label is None else label.tolist()
        request = replace(request, labels=labels)
        denoise, x_T, noise = self.model.prepare_sampling(request, 0, request.n)
        second = ImageNoise(second_seed, 0, 1)(x_T[:1])[0]
        points = slerp(x_T[0], second, torch.linspace(0, 1, request.n))
        sampler = request.sampler or self.model.sampler
        yield from self._watch(request, sampler, denoise, points, lambda x: noise(x)[:1].expand_as(x))

    def _watch(
        self,
        request: SampleRequest,
        sampler: Sampler,
        denoise: Denoiser,
        x_T: Tensor,
        noise: Noise,
        titles: Sequence[str] = (),
    ) -> Iterator[Frame]:
        """Yield frames of the sampler's trajectory, no more often than they can be looked at."""
        strip, stride, step, evaluated, x = [self._preview(x_T[:1])], 1, 0, 0, x_T
        start, due, total = time.monotonic(), 0.0, count_nfe(self.model, replace(request, sampler=sampler))
        trajectory = sampler.trajectory(denoise, x_T, noise)

        def make_frame(path: Sequence[Tensor] = ()) -> Frame:
            nfe, seconds = evaluated / len(x_T), time.monotonic() - start
            shown = torch.cat([*path]) if path else torch.empty(0)
            return Frame(self._preview(x), titles, shown, step, nfe, total, seconds, is_last=bool(path))

        yield make_frame()
        while True:
            # of this step: the next one may run in another thread, and a request that was stopped may still be in one
            with self._turn, torch.no_grad(), self.fabric.autocast():
                self._evaluations.clear()
                following = next(trajectory, None)
                evaluated += sum(self._evaluations)
            if following is None:
                break
            x, step = following, step + 1
            if step % stride == 0:
                strip.append(self._preview(x[:1]))
            if len(strip) > 4 * STRIP:
                strip, stride = strip[::2], 2 * stride
            if (before := time.monotonic()) >= due:
                yield make_frame()
                after = time.monotonic()
                due = after + max(FRAME_SECONDS, (after - before) / FRAME_SHARE)
        if step % stride:
            strip.append(self._preview(x[:1]))
        chosen = torch.linspace(0, len(strip) - 1, min(STRIP, len(strip))).long().tolist()
        yield make_frame([strip[index] for index in chosen])

    def _preview(self, x: Tensor) -> Tensor:
        """Return x_t as images to look at, on the CPU."""
        values = self.model.values
        return self._shown_by.show(values, values.to_data(x)).cpu()


def _explain_no_inpainting(model: DDPM) -> str | None:
    """Return why the page cannot inpaint a model's images; ``None`` if it can."""
    try:
        require_uint8(model, "inpainting", "the other tabs generate them")
    except UserError as error:
        return str(error)
    channels = model.image_shape[0]
    return None if channels in (1, 3) else f"inpainting by mouse needs images of 1 or 3 channels, these have {channels}"
