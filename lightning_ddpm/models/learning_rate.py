"""The learning rate over a run: a warm-up, then constant or decaying to the run's last step."""

import math
from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_ddpm.utils.errors import UserError

Decay = Literal["constant", "linear", "cosine"]
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}
"""Share of the highest rate by the share of the decay that is over."""


ARGUMENTS = ("steps", "decay", "length", "lowest")
"""What the config sets, and no checkpoint."""


class WarmUp(LRScheduler):
    """Raises the learning rate linearly, and keeps it constant or lowers it from then on.

    The rate of a step is a function of its number alone. A run that is resumed with another ``max_steps`` has the
    rates of the new length.

    Args:
        optimizer: its learning rate is the highest one.
        steps: number of steps of the warm-up; the first step has 1 / ``steps`` of the highest rate.
        decay: "constant" as in Ho et al. 2020, "linear" (Defazio et al. 2023, arXiv:2310.07831) or "cosine" (Loshchilov
            & Hutter 2017, arXiv:1608.03983).
        length: number of steps of the run, after which the rate is the lowest; ``None`` for ``trainer.max_steps``.
        lowest: share of the highest rate at the end of the decay.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int = 5000,
        decay: Decay = "constant",
        length: int | None = None,
        lowest: float = 0.0,
    ) -> None:
        if steps < 0:
            raise UserError(f"the warm-up's steps must be at least 0, got {steps}")
        if decay not in DECAYS:
            raise UserError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
        if not 0 <= lowest <= 1:
            raise UserError(f"lowest is a share of the learning rate in [0, 1], got {lowest}")
        self.steps, self.decay, self.lowest = steps, decay, lowest
        self.length: float | None = None
        if length is not None:
            self.set_length(length)
        super().__init__(optimizer)

    def set_length(self, length: float) -> None:
        """Set the number of steps of the run, infinite for a run without an end, where none was given.

        Raises:
            UserError: the rate is to decay, and no steps are left for it or the run has no end.
        """
        if self.length is not None:
            return
        if self.decay != "constant" and math.isinf(length):
            raise UserError(f"a {self.decay} decay needs to know the run's end; set trainer.max_steps, or its length")
        if self.decay != "constant" and length <= self.steps:
            raise UserError(
                f"a warm-up of {self.steps} steps leaves none of the run's {length:.0f} for the {self.decay} decay; "
                "lower its steps"
            )
        self.length = length

    def get_lr(self) -> list[Any]:
        """Return the rate of the next step for every parameter group."""
        factor = self.compute_factor(self.last_epoch)
        return [factor * float(each) for each in self.base_lrs]

    def compute_factor(self, step: int) -> float:
        """Return the share of the highest rate that a step has, by the number of steps before it."""
        if step < self.steps:
            return (step + 1) / self.steps
        if self.length is None or self.decay == "constant":
            return 1.0
        share = DECAYS[self.decay](min(1.0, (step - self.steps) / (self.length - self.steps)))
        return self.lowest + (1 - self.lowest) * share

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the highest rates."""
        return {name: value for name, value in super().state_dict().items() if name not in ARGUMENTS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after a checkpoint's number of steps, with the rate that the next one has in this run."""
        super().load_state_dict(state_dict)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
