"""Every so many steps or epochs."""

from pytorch_lightning import Trainer

from lightning_ddpm.utils.errors import UserError


class Interval:
    """Says when something is due.

    Args:
        steps: every so many optimizer steps, or ``None``.
        epochs: every so many epochs, or ``None``; one of the two.
    """

    def __init__(self, steps: int | None, epochs: int | None) -> None:
        if (steps is None) == (epochs is None) or (steps or epochs or 0) < 1:
            raise UserError(
                "give either every_n_steps or every_n_epochs, at least 1, "
                f"got every_n_steps={steps} and every_n_epochs={epochs}"
            )
        self.steps, self.epochs = steps, epochs
        self._last = 0

    def start(self, trainer: Trainer) -> None:
        """Count from where training starts: what was due there has been done by the run before."""
        self._last = trainer.global_step

    def after_batch(self, trainer: Trainer) -> bool:
        """Whether it is due after this batch; once a step, however many batches a step takes."""
        step = trainer.global_step
        due = self.steps is not None and step != self._last and step % self.steps == 0
        self._last = step
        return due

    def after_epoch(self, trainer: Trainer) -> bool:
        """Whether it is due after this epoch."""
        return self.epochs is not None and (trainer.current_epoch + 1) % self.epochs == 0
