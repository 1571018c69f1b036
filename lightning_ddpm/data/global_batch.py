"""How the images of an optimizer step are divided among devices and accumulated batches."""

from typing import Any

from pytorch_lightning import Trainer

from lightning_ddpm.utils.errors import UserError


def divide_step(images: int, devices: int, most: int) -> tuple[int, int]:
    """Return the batch size of a device and the number of accumulated batches whose product with devices is ``images``.

    Args:
        images: number of images in an optimizer step.
        devices: number of devices.
        most: largest batch size of a device.

    Raises:
        UserError: the images cannot be divided equally among the devices.
    """
    share, rest = divmod(images, devices)
    if rest:
        near = [f"{count}" for count in (images - rest, images - rest + devices) if count]
        raise UserError(
            f"a step of {images} images cannot be divided equally among {devices} devices; use a number of devices "
            f"that divides it, or set data.global_batch_size to {' or '.join(near)}"
        )
    accumulate = next(count for count in range(-(-share // most), share + 1) if share % count == 0)
    return share // accumulate, accumulate


def check_fits(images: int, batch_size: int, devices: int, step: int | None) -> None:
    """Check that a dataset has enough images for a batch on each device and, unless it is ``None``, for a whole step.

    Raises:
        UserError: it has fewer.
    """
    if batch_size * devices > images:
        raise UserError(
            f"a batch of {batch_size} images on each of {devices} devices is larger than the dataset ({images} images)"
            "; lower data.batch_size"
        )
    if step and step > images:
        raise UserError(
            f"a step of {step} images is larger than the dataset ({images} images), and data.drop_last skips what does "
            "not fill a step; lower data.batch_size, or turn it off"
        )


class GlobalBatch:
    """Keeps the number of images in an optimizer step when the number of devices changes.

    Args:
        batch_size: the configured batch size, of which a device takes no more.
        images: the configured number of images in a step; ``None`` for ``batch_size`` images on each device in each
            accumulated batch.
    """

    def __init__(self, batch_size: int, images: int | None) -> None:
        self.batch_size, self.images = batch_size, images
        self._options: list[int | None] = []

    def setup(self, trainer: Trainer | None) -> int:
        """Set the trainer's accumulation for the configured step; return the batch size of a device.

        Raises:
            UserError: the step cannot be divided so, or the accumulation is configured, too.
        """
        if trainer is None or self.images is None:
            self._options = [self.batch_size, trainer.accumulate_grad_batches if trainer else 1, None]
            return self.batch_size
        batch_size, accumulate = divide_step(self.images, trainer.world_size, self.batch_size)
        if trainer.accumulate_grad_batches not in (1, accumulate):
            raise UserError(
                f"data.global_batch_size {self.images} takes {accumulate} batches of {batch_size} images on each of "
                f"{trainer.world_size} devices, and trainer.accumulate_grad_batches is "
                f"{trainer.accumulate_grad_batches}; leave it out"
            )
        trainer.accumulate_grad_batches = accumulate
        self._options = [self.batch_size, None, self.images]
        return batch_size

    def keep(self, trainer: Trainer, state: dict[str, Any]) -> int | None:
        """Keep the number of images in a step of the checkpoint's run, if the config asks for the same as there.

        Args:
            trainer: the resumed run's; its accumulation is changed to match.
            state: what :meth:`state_dict` returned in the checkpoint's run; empty for a run of an earlier version.

        Returns:
            the batch size of a device; ``None`` if nothing changes.

        Raises:
            UserError: the step cannot be divided equally among the devices.
        """
        if state.get("options") != self._options:
            return None
        batch_size, accumulate = divide_step(state["images"], trainer.world_size, self.batch_size)
        if (batch_size, accumulate) == (self.batch_size, trainer.accumulate_grad_batches):
            return None
        trainer.accumulate_grad_batches = accumulate
        return batch_size

    def state_dict(self, images: int) -> dict[str, Any]:
        """Return what :meth:`keep` needs, for a run with this number of images in a step."""
        return {"images": images, "options": self._options}
