"""A CSV file that describes the images of another source."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ddpm.data import ArrayFile, ArrayFolder, Described, Digits, ImageDataModule
from lightning_ddpm.data.condition_table import ConditionTable
from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.utils.errors import UserError

HEADER = "file,mass,age,red,round\n"


def write_arrays(root: Path, rows: list[str] | None = None) -> None:
    """Write ten arrays that are filled with their number, and a table in another order: mass is the number."""
    (root / "a").mkdir()
    for index in range(10):
        np.save(root / "a" / f"{index}.npy", np.full((1, 4, 4), index, np.uint8))
    rows = rows or [
        f"a/{index}.npy, {index}.0,{index**2 / 7},{index % 2},{int(index > 4)}" for index in (3, *range(10))[1:]
    ]
    (root / "conditions.csv").write_text(HEADER + "\n".join(reversed(rows)))


def make_source(vector: tuple[str, ...] = ("mass", "age"), multilabel: tuple[str, ...] = ("red", "round")) -> Described:
    return Described(ArrayFolder(), vector, multilabel)


def test_each_image_has_its_row_by_the_name_of_its_file(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    data = ImageDataModule(make_source(), root=str(tmp_path))
    data.prepare_data()
    for part in (data.train, data.held_out):
        assert isinstance(part, ConditionedDataset)
        assert part.vector is not None
        number = part.__getitems__(range(len(part)))[0][:, 0, 0, 0].float()
        torch.testing.assert_close(part.vector, torch.stack([number, number**2 / 7], dim=1))
        assert torch.equal(part.multilabel, torch.stack([number % 2 == 1, number > 4], dim=1).to(torch.uint8))
    assert len(data.train) + len(data.held_out) == 10


def test_images_in_one_array_have_the_rows_in_their_order(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3))
    (tmp_path / "conditions.csv").write_text("mass\n" + "\n".join(str(2 * row) for row in range(10)))
    data = ImageDataModule(Described(ArrayFile(holdout=0.3), ["mass"]), root=str(tmp_path))
    for part in (data.train, data.held_out):
        assert torch.equal(part.vector[:, 0], 2 * part.__getitems__(range(len(part)))[0][:, 0, 0, 0].float())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("a/3.npy", "a/33.npy"), r"has no row for 1 of the 9 images:\na/3.npy\nAdd the rows"),
        (("a/3.npy", "a/4.npy"), "has two rows for 'a/4.npy'; delete one"),
        ((" 3.0", "nan"), "row 7 of .* has 'nan' in the column 'mass'; give a finite number"),
        ((" 3.0", ""), "row 7 of .* has '' in the column 'mass'; give a finite number"),
        ((",0,1", ",2,1"), "has 2 in the column 'red'; give 1 for each class that an image has, else 0"),
        (("mass", "weight"), "has no column 'mass'; it has file, weight, age, red, round"),
        (("mass", "age"), "has two columns named 'age'; rename one"),
        ((" 3.0", "3,0"), "row 7 of .* has 6 values and there are 5 columns"),
    ],
)
def test_a_table_that_does_not_describe_the_images_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    write_arrays(tmp_path)
    table = tmp_path / "conditions.csv"
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        ImageDataModule(make_source(), root=str(tmp_path)).prepare_data()


def test_a_table_needs_columns_rows_and_images_with_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the columns of the table"):
        Described(Digits())
    with pytest.raises(
        UserError, match=r"there is no file .*conditions.csv; give a CSV file with a line of column names"
    ):
        Described(Digits(), ["mass"]).open(tmp_path, "train")
    (tmp_path / "conditions.csv").write_text("file,mass\n")
    with pytest.raises(UserError, match="has no rows below a line of column names"):
        Described(Digits(), ["mass"]).open(tmp_path, "train")
    (tmp_path / "conditions.csv").write_text("file,mass\n0,1\n")
    with pytest.raises(UserError, match=r"the images of Digits have no names, by which .* could describe them"):
        Described(Digits(), ["mass"]).open(tmp_path, "train")


def write_array(path: Path, start: int, stop: int) -> None:
    np.save(path, np.arange(start, stop, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3))


def test_rows_that_could_be_of_several_images_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "train.npy", 0, 10)
    write_array(tmp_path / "other.npy", 10, 13)
    for rows, settings, message in (
        (13, {"held_out_file": "other.npy"}, "a training image and a held-out one are both named 0, so that no row"),
        (11, {}, r"conditions.csv has 11 rows and there are 10 images; give a row for each, or their indices in a col"),
    ):
        (tmp_path / "conditions.csv").write_text("mass\n" + "\n".join(map(str, range(rows))))
        with pytest.raises(UserError, match=message):
            ImageDataModule(Described(ArrayFile(**settings), ["mass"]), root=str(tmp_path)).prepare_data()
    (tmp_path / "conditions.csv").write_text("file,mass\n" + "\n".join(f"{row},{row}" for row in range(11)))
    ImageDataModule(Described(ArrayFile(), ["mass"]), root=str(tmp_path)).prepare_data()


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",mass,,\n0,1.5,,\n1,2.5,,\n")  # an index before, and commas behind, as spreadsheets write them
    assert ConditionTable(path).read_numbers(["mass"]).tolist() == [[1.5], [2.5]]


def test_a_relative_root_and_a_table_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    write_arrays(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    data = ImageDataModule(make_source(), root="data")
    data.prepare_data()
    assert sorted(data.train.vector[:, 0].tolist() + data.held_out.vector[:, 0].tolist()) == [*range(10)]  # type: ignore[attr-defined]
    (tmp_path / "data" / "conditions.csv").write_text(HEADER + "x" * 200_000)
    with pytest.raises(UserError, match=r"conditions.csv is not a CSV file: field larger than field limit"):
        data.prepare_data()


def test_the_state_of_derived_images_is_that_of_the_next_process() -> None:
    def darken(images: torch.Tensor) -> torch.Tensor:
        return images // 2

    data = ConditionedDataset(Digits().open(Path(), "test"), derive=darken)
    assert data.condition_state.endswith("darken")


def test_numbers_of_another_length_and_nan_are_refused_in_a_dataset() -> None:
    images = Digits().open(Path(), "test")
    with pytest.raises(UserError, match="there are 179 images and 3 rows of vector; give one for each"):
        ConditionedDataset(images, torch.zeros(3, 2))
    vector = torch.zeros(len(images), 2)
    vector[7, 1] = torch.nan
    with pytest.raises(UserError, match="the condition of image 7 has the number nan in column 1"):
        ConditionedDataset(images, vector)
