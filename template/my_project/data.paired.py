"""The data: PNG files of equal names in data.root/input, which are given, and data.root/target, which are generated."""

from pathlib import Path

import torch
from lightning_ddpm.data import ConditionedDataset, ConditionFormat, FileDataset, ImageSource, Split, build_path_dataset
from lightning_ddpm.utils.errors import UserError


class Data(ImageSource):
    """Pairs of RGB images, of which every tenth is held out; target's subfolders, if it has any, are the classes."""

    channels = 3

    def __init__(self, size: int = 32) -> None:
        self.size, self.condition = size, ConditionFormat(image=(3, size, size))

    def prepare(self, root: Path) -> None:
        if self.class_names(root) and (beside := next((root / "target").glob("*.png"), None)):
            raise UserError(f"{beside} lies beside the folders of the classes; move it into one of them")
        if alone := {*self.list_names(root / "target")} ^ {*self.list_names(root / "input")}:
            raise UserError(f"{root}/input and target do not both hold {min(alone)}; add its partner, or delete it")

    def open(self, root: Path, split: Split) -> ConditionedDataset:
        return ConditionedDataset(self.open_folder(root, "target", split), pairs=self.open_folder(root, "input", split))

    def open_folder(self, root: Path, folder: str, split: Split) -> FileDataset:
        names = [name for i, name in enumerate(self.list_names(root / folder)) if (i % 10 == 9) == (split == "test")]
        classes = self.class_names(root)
        labels = torch.tensor([classes.index(name.parts[0]) if classes else -1 for name in names])
        return build_path_dataset([root / folder / name for name in names], labels, self.channels, self.size)

    def list_names(self, folder: Path) -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.rglob("*.png"))

    def image_files(self, root: Path) -> list[FileDataset]:  # what check-data reads
        return [self.open_folder(root, each, split) for each in ("target", "input") for split in ("train", "test")]

    def class_names(self, root: Path) -> list[str]:
        if len(self.list_names(root / "target")) < 10:
            raise UserError(f"there are not ten PNG files in {root}/target; set --data.root to its parent")
        return sorted(path.name for path in (root / "target").iterdir() if path.is_dir())
