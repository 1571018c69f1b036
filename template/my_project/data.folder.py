"""The data: PNG files in the folder data.root. Its subfolders are the classes; where it has none there are none."""

from pathlib import Path

import torch
from lightning_ddpm.data import FileDataset, ImageSource, Split, build_path_dataset
from lightning_ddpm.utils.errors import UserError


class Data(ImageSource):
    """RGB images, resized and center-cropped, of which every tenth is held out; the config gives their size."""

    channels = 3

    def __init__(self, size: int = 32) -> None:
        self.size = size

    def prepare(self, root: Path) -> None:
        if self.class_names(root) and (beside := next(root.glob("*.png"), None)):
            raise UserError(f"{beside} lies beside the folders of the classes; move it into one of them")

    def open(self, root: Path, split: Split) -> FileDataset:
        paths = [path for i, path in enumerate(sorted(root.rglob("*.png"))) if (i % 10 == 9) == (split == "test")]
        names = self.class_names(root)
        labels = [names.index(path.relative_to(root).parts[0]) if names else -1 for path in paths]
        return build_path_dataset(paths, torch.tensor(labels), self.channels, self.size)

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, "train"), self.open(root, "test")]  # what check-data reads

    def class_names(self, root: Path) -> list[str]:
        if len(list(root.rglob("*.png"))) < 10:
            raise UserError(f"there are not ten PNG files in {root}; set --data.root to their folder")
        return sorted(path.name for path in root.iterdir() if path.is_dir())
