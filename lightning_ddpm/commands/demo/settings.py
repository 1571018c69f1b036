"""What a visitor of the page can ask for, and how it becomes a request; every value is checked, whoever sent it."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch

from lightning_ddpm.commands.batch_size import DEFAULT
from lightning_ddpm.commands.class_names import list_subclasses
from lightning_ddpm.diffusion import Ancestral, ClassifierFree, FixedSmall, Sampler
from lightning_ddpm.models.conditioning import list_embeddings
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import ConditionSource, SampleRequest
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.contracts import is_ours
from lightning_ddpm.utils.errors import UserError

OWN = "the checkpoint's own"
"""Name of the sampler that the checkpoint holds."""
MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 20.0


@dataclass(frozen=True)
class Settings:
    """What every request has.

    Attributes:
        label: class of the images; ``None`` for the frequencies of the training data.
        guidance: scale of classifier-free guidance.
        sampler: :data:`OWN`, or a name of :func:`list_samplers`.
        steps: of the sampler; unused by the checkpoint's own.
        seed: of the images.
        n: number of images.
        vector: the numbers that images are conditioned on, if the model's are.
        multilabel: the classes that they have, of several, by number, if the model's do.
    """

    label: int | None
    guidance: float
    sampler: str
    steps: int
    seed: int
    n: int
    vector: Sequence[float] = ()
    multilabel: Sequence[int] = ()


class Choice(NamedTuple):
    """A sampler to choose: what builds it, from the number of steps if it takes one."""

    build: Callable[..., Sampler]
    takes_steps: bool

    def build_sampler(self, steps: int) -> Sampler:
        """Return the sampler."""
        return self.build(steps=steps) if self.takes_steps else self.build()


class Choices:
    """What there is to choose for one model.

    Args:
        model: the model.
        max_images: largest number of images of a request.

    Attributes:
        samplers: the samplers of this package that suit the model, by name.
        is_guidable: whether guidance has an effect.
        vector: what the images are conditioned on where a visitor asks for nothing else: the mean of the training data.

    Raises:
        UserError: the model is conditioned on images, for which there is no control.
    """

    def __init__(self, model: DDPM, max_images: int) -> None:
        if model.condition_format.image:
            raise UserError("the demo has no control for images that a model is conditioned on; use `sample` for it")
        self.model, self.max_images = model, max_images
        self.samplers = list_samplers(model)
        self.is_guidable = bool(model.condition_kinds and model.label_dropout)
        self.vector = [0.0 for _ in model.condition_format.vector]
        for each in list_embeddings(model.network):
            if each.kind == "vector" and isinstance(mean := getattr(each, "mean", None), torch.Tensor):
                self.vector = mean.tolist()

    def make_request(self, settings: Settings) -> SampleRequest:
        """Return the request of the settings.

        Raises:
            UserError: one of them is wrong, or does not suit the model.
        """
        n = check_number("the number of images", settings.n, 1, self.max_images)
        seed = check_number("the seed", settings.seed, 0, MAX_SEED)
        sampler, labels, guidance = None, None, None
        if settings.sampler != OWN:
            if settings.sampler not in [*self.samplers]:  # a visitor may send what cannot be a key
                raise UserError(f"there is no such sampler; there are {', '.join(self.samplers)}")
            steps = check_number("the number of steps", settings.steps, 1, self.model.schedule.T)
            sampler = self.samplers[settings.sampler].build_sampler(steps)
            sampler.check_denoiser(self.model.denoiser)
        if settings.label is not None:
            labels = [check_number("the class", settings.label, 0, len(self.model.class_names) - 1)]
        if self.is_guidable and settings.guidance != 1:
            guidance = ClassifierFree(check_number("the guidance scale", settings.guidance, 0, MAX_GUIDANCE, float))
        return SampleRequest(n, seed, n, sampler, guidance, labels, self._make_conditions(settings))

    def _make_conditions(self, settings: Settings) -> ConditionSource | None:
        """Return what the images are conditioned on besides a class; ``None`` for nothing."""
        vector, multilabel = self.model.condition_format.vector, self.model.condition_format.multilabel
        if not vector and not multilabel:
            return None
        largest = torch.finfo(torch.float32).max
        pairs = zip(vector, settings.vector, strict=True)
        numbers = torch.tensor([check_number(name, each, -largest, largest, float) for name, each in pairs])
        present = torch.zeros(len(multilabel), dtype=torch.uint8)
        for each in settings.multilabel:
            present[check_number("a class", each, 0, len(multilabel) - 1)] = 1

        def give(start: int, stop: int) -> Condition:
            rows = stop - start
            return Condition(
                multilabel=present.expand(rows, -1) if multilabel else None,
                vector=numbers.expand(rows, -1) if vector else None,
            )

        return give

    def write_command(self, settings: Settings, ckpt: str, more: Sequence[str] = ()) -> str:
        """Return the command that generates the images of the settings into a folder; empty where a file is needed.

        Args:
            settings: of the request.
            ckpt: the model.
            more: further options of ``sample``: those that the model is used with.
        """
        if self.model.condition_format.kinds:
            return ""
        words = ["lightning-ddpm", "sample", "--ckpt", ckpt, "--n", settings.n, "--seed", settings.seed]
        if settings.sampler != OWN:
            words += ["--sampler", settings.sampler]
            words += ["--sampler.variance", "FixedSmall"] if settings.sampler == "Ancestral" else []
            words += ["--steps", settings.steps] if self.samplers[settings.sampler].takes_steps else []
        words += [] if settings.label is None else ["--labels", settings.label]
        words += ["--guidance", f"{settings.guidance:.12g}"] if self.is_guidable and settings.guidance != 1 else []
        words += ["--batch_size", settings.n] if settings.n > DEFAULT else []  # the page makes all of them at once
        return shlex.join(map(str, [*words, *more, "--out", "samples"]))


def list_samplers(model: DDPM) -> dict[str, Choice]:
    """Return the samplers of this package that suit a model and need no other argument, by name."""
    kinds = [(name, kind) for name, kind in list_subclasses(Sampler).items() if is_ours(kind)]
    found: dict[str, Choice] = {}
    for name, kind in sorted(kinds):
        build = partial(kind, FixedSmall()) if kind is Ancestral else kind
        parameters = signature(build).parameters
        if any(each.default is each.empty for each in parameters.values()):
            continue  # it is made for another task
        choice = Choice(build, "steps" in parameters)
        with suppress(UserError):  # the path does not suit it
            choice.build_sampler(min(10, model.schedule.T)).check_denoiser(model.denoiser)
            found[name] = choice
    return found


def check_number(what: str, value: Any, low: float, high: float, kind: type[Any] = int) -> Any:
    """Return a number that a visitor gave, as an int or a float.

    Raises:
        UserError: it is no such number, or lies outside the range.
    """
    is_inside = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN is not
    if not is_inside or (kind is int and value != int(value)):
        word = "a whole number" if kind is int else "a number"
        raise UserError(f"{what} must be {word} from {low:g} to {high:.10g}, got {str(value)[:40]}")
    return kind(value)
