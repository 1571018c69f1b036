"""The data: PNG files of equal names in data.root/input, which are given, and data.root/target, which are generated."""

from pathlib import Path

import torch
from lightning_ddpm.data import ConditionedDataset, ConditionFormat, ImageDataset, ImageSource
from lightning_ddpm.data.datasets import FileDataset, build_path_dataset
from lightning_ddpm.data.sources import Split
from lightning_ddpm.utils.errors import UserError


class Data(ImageSource):
    """Pairs of RGB images, resized and center-cropped, of which every tenth is held out; the config gives their size.

    The subfolders of target are the classes; where it has none there are none.
    """

    channels = 3

    def __init__(self, size: int = 32) -> None:
        self.size, self.condition = size, ConditionFormat(image=(self.channels, size, size))

    def prepare(self, root: Path) -> None:
        targets, given = (set(self.list_names(root / folder)) for folder in ("target", "input"))
        if len(targets) < 10:
            raise UserError(f"there are not ten PNG files in {root}/target; set --data.root to its parent")
        if alone := sorted(targets ^ given):
            raise UserError(f"{root}/input and target do not both hold {alone[0]}; add its partner, or delete it")
        if self.class_names(root) and (beside := next((root / "target").glob("*.png"), None)):
            raise UserError(f"{beside} lies beside the folders of the classes; move it into one of them")

    def open(self, root: Path, split: Split) -> ImageDataset:
        return ConditionedDataset(self.open_folder(root, "target", split), pairs=self.open_folder(root, "input", split))

    def open_folder(self, root: Path, folder: str, split: Split) -> FileDataset:
        chosen = [name for i, name in enumerate(self.list_names(root / folder)) if (i % 10 == 9) == (split == "test")]
        classes = self.class_names(root)
        labels = [classes.index(name.parts[0]) if classes else -1 for name in chosen]
        return build_path_dataset([root / folder / name for name in chosen], torch.tensor(labels), 3, self.size)

    def list_names(self, folder: Path) -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.rglob("*.png"))

    def image_files(self, root: Path) -> list[FileDataset]:  # what check-data reads
        return [self.open_folder(root, each, split) for each in ("target", "input") for split in ("train", "test")]

    def class_names(self, root: Path) -> list[str]:
        if not (root / "target").is_dir():
            raise UserError(f"there is no folder target in {root}; set --data.root to that of input and target")
        return sorted(path.name for path in (root / "target").iterdir() if path.is_dir())
