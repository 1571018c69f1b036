"""The data: images.npy (n, c, h, w) uint8 in the folder data.root, and labels.npy (n,) if there are classes."""

from pathlib import Path

import numpy as np
import torch
from lightning_ddpm.data import FileDataset, ImageDataset, ImageSource, MemoryDataset, Split
from lightning_ddpm.utils.errors import UserError


class Data(ImageSource):
    """Images in one array, of which every tenth is held out; the config gives their channels and their size."""

    def __init__(self, channels: int = 1, size: int = 32) -> None:
        self.channels, self.size = channels, size

    def prepare(self, root: Path) -> None:
        self.class_names(root)

    def open(self, root: Path, split: Split) -> ImageDataset:
        images, labels = np.load(root / "images.npy"), self.read_labels(root).astype(np.int64)
        chosen = (np.arange(len(images)) % 10 == 9) == (split == "test")
        return MemoryDataset(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))

    def read_labels(self, root: Path) -> np.ndarray:
        if not (root / "images.npy").is_file():
            raise UserError(f"there is no images.npy in {root}; set --data.root to its folder")
        n, path = len(np.load(root / "images.npy", mmap_mode="r")), root / "labels.npy"
        labels = np.load(path) if path.is_file() else np.full(n, -1)
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min(initial=0) < -1:
            raise UserError(f"{path} must hold a class 0, 1, ... of each of the {n} images, or -1 for none")
        return labels

    def image_files(self, root: Path) -> list[FileDataset]:
        return []  # the images are in an array

    def class_names(self, root: Path) -> list[str]:
        return [str(label) for label in range(max(self.read_labels(root).tolist(), default=-1) + 1)]
