"""The data: scikit-learn's handwritten digits, until you read your own."""

from pathlib import Path

import torch
from lightning_ddpm.data import FileDataset, ImageDataset, ImageSource, MemoryDataset, Split
from sklearn.datasets import load_digits


class Data(ImageSource):
    """1,797 images of 8x8 pixels in ten classes, of which every tenth is held out."""

    channels, size = 1, 8

    def prepare(self, root: Path) -> None:
        """Download the data to the folder here, and check them; the digits are part of scikit-learn."""

    def open(self, root: Path, split: Split) -> ImageDataset:
        digits = load_digits()
        images = torch.tensor(digits.images * 255 / 16).round().to(torch.uint8)[:, None]  # (n, c, h, w)
        chosen = (torch.arange(len(images)) % 10 == 9) == (split == "test")
        return MemoryDataset(images[chosen], torch.tensor(digits.target)[chosen])

    def image_files(self, root: Path) -> list[FileDataset]:
        return []  # the images are in an array

    def class_names(self, root: Path) -> list[str]:
        return [str(digit) for digit in range(10)]
