"""What callbacks ask of one another, whatever their classes are."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from pytorch_lightning import LightningModule, Trainer


@runtime_checkable
class KeepsAveragedWeights(Protocol):
    """A callback that keeps an average of the weights."""

    def update_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        """Average the last step's weights too, if the callback's own hook has not run yet."""

    def use_average(self, module: LightningModule) -> AbstractContextManager[None]:
        """Give the module the averaged weights inside the context and its own afterwards."""


@runtime_checkable
class HasEvaluated(Protocol):
    """A callback that evaluates the model during training.

    Attributes:
        evaluated_step: the optimizer step after which it last did so; -1 before the first evaluation.
        last_metrics: what it then logged.
    """

    evaluated_step: int
    last_metrics: dict[str, float]
