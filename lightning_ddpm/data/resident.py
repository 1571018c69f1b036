"""Training images in the memory of the device: batches are gathered there by index, and no loader reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ddpm.data.datasets import Batch, ImageDataset, MemoryDataset
from lightning_ddpm.utils.errors import UserError

SHARE = 1 / 8
"""Largest share of a GPU's memory that the images take unless they are asked to."""


class IndexDataset(Dataset[Tensor]):
    """The indices of n images: what a loader yields for images that are on the device."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.as_tensor(indices)


class ResidentImages:
    """A dataset's images and labels, copied to a device when a batch is first gathered there.

    Args:
        data: the images in the host's memory.
    """

    def __init__(self, data: MemoryDataset) -> None:
        self._data = data
        self._copy: tuple[Tensor, Tensor] | None = None

    def gather(self, indices: Tensor) -> Batch:
        """Return the uint8 images and labels at the indices (b,), on the device of the indices."""
        if self._copy is None or self._copy[0].device != indices.device:
            self._copy = self._data.images.to(indices.device), self._data.labels.to(indices.device)
        images, labels = self._copy
        return images[indices], labels[indices]


def keep_on_device(data: ImageDataset, wanted: bool | None, device: torch.device) -> ResidentImages | None:
    """Return the images to be kept on a device, or ``None`` for those that a loader reads.

    Args:
        data: the training images.
        wanted: whether to keep them there; ``None`` for images in memory that take up to :data:`SHARE` of a GPU's.
        device: the device.

    Raises:
        UserError: they are asked for, and are not in memory.
    """
    # A subclass may change the images that it returns.
    in_memory = data if type(data) is MemoryDataset else None
    if wanted and in_memory is None:
        raise UserError(
            f"data.on_device true needs images that are decoded in memory, and these {len(data)} images are a "
            f"{type(data).__name__}, which reads them batch by batch; set it to null"
        )
    if in_memory is None or wanted is False or (wanted is None and device.type != "cuda"):
        return None
    if wanted is None and in_memory.images.nbytes > SHARE * torch.cuda.get_device_properties(device).total_memory:
        return None
    return ResidentImages(in_memory)
