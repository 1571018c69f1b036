"""The request for a set of generated images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError

ConditionSource = Callable[[int, int], Condition]
"""(start, stop) -> the condition of images start..stop, on the CPU and as datasets have it."""


@dataclass(frozen=True)
class SampleRequest:
    """n images of the set that a seed names: image i is a function of the weights, this request and i alone.

    Attributes:
        n: number of images.
        seed: seed of the set of images.
        batch_size: images generated at a time on each rank.
        sampler: ``None`` for the model's own.
        guidance: ``None`` for no guidance beyond conditioning the network on the classes, if it has any.
        labels: classes of the images, repeated in turn; ``None`` for the class frequencies of the training data or, if
            the model has no classes, for all classes of the guidance in turn.
        conditions: what else the images are conditioned on, if the model's are; ``None`` for the conditions of held-out
            images, which are known in training alone.
    """

    n: int
    seed: int = 0
    batch_size: int = 64
    sampler: Sampler | None = None
    guidance: Guidance | None = None
    labels: Sequence[int] | None = None
    conditions: ConditionSource | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: n or batch_size is less than 1.
        """
        for name, value in (("n", self.n), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
