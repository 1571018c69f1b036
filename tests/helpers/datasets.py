"""Datasets that worker processes can import."""

from torch import Tensor
from torch.utils.data import Dataset

from lightning_ddpm.data import ImageDataset


class Together(Dataset[tuple[Tensor, Tensor]]):
    """All images of each of several datasets as one item, so that one worker, whose start is slow, reads them all."""

    def __init__(self, datasets: list[ImageDataset]) -> None:
        self.datasets = datasets

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        data = self.datasets[index]
        return data.__getitems__(range(len(data)))
