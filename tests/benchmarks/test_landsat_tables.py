"""landsat_tables: tiles that share no pixel with held-out ones, distances to windows, and a whole small run."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from benchmarks import landsat_tables
from benchmarks.__main__ import main

ROWS, COLUMNS = 321, 50
NUMBERS = np.arange(6 * ROWS * COLUMNS, dtype=np.float32).reshape(6, ROWS, COLUMNS)
"""A scene of which no two values are equal."""


def write_scene(path: Path, scene: np.ndarray) -> Path:
    tifffile.imwrite(path, np.moveaxis(scene, 0, 2), photometric="minisblack", planarconfig="contig")
    return path


def test_tiles_are_the_first_bands_in_their_order_and_training_tiles_share_no_pixel_with_others(tmp_path: Path) -> None:
    landsat_tables.write_tiles(tmp_path, write_scene(tmp_path / "scene.tif", NUMBERS))
    train, test, rows = (np.load(tmp_path / f"{name}.npy") for name in ("train", "test", "rows"))
    assert (train.shape, test.shape) == ((32 * 3, 5, 32, 32), (2 * 3, 5, 32, 32))
    assert {each.dtype.name for each in (train, test, rows)} == {"float32"}
    np.testing.assert_array_equal(train[4], NUMBERS[:5, 8:40, 8:40])
    np.testing.assert_array_equal(train[-1], NUMBERS[:5, 248:280, 16:48])
    np.testing.assert_array_equal(test[0], NUMBERS[:5, 280:312, :32])
    assert not np.intersect1d(train, test).size
    assert np.isin(train, rows).all()
    assert not np.intersect1d(test, rows).size


def test_a_scene_that_is_missing_or_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^no scene was given; give --tif FILE"):
        landsat_tables.write_tiles(tmp_path / "data", None)
    with pytest.raises(SystemExit, match=r"^there is no scene \S+none.tif; give --tif FILE"):
        landsat_tables.write_tiles(tmp_path / "data", tmp_path / "none.tif")
    small = write_scene(tmp_path / "small.tif", NUMBERS[:, :311])
    with pytest.raises(SystemExit, match="6x311x50 bands, rows and columns; at least 5x312x32"):
        landsat_tables.write_tiles(tmp_path / "data", small)
    assert not (tmp_path / "data").exists()


def test_the_nearest_window_is_found_at_any_place() -> None:
    scene = torch.randn(2, 12, 15, generator=torch.Generator().manual_seed(0))
    tiles = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    tiles[1] = scene[:, 5:11, 3:9]
    found = landsat_tables.measure_nearest(tiles, scene)
    windows = [scene[:, y : y + 6, x : x + 6] for y in range(7) for x in range(10)]
    for tile, share in zip(tiles.double(), found, strict=True):
        least = min(float((tile - each).square().sum()) for each in windows)
        assert float(share) == pytest.approx(least / (36 * float(tile.var((1, 2), correction=0).sum())), abs=1e-9)
    assert float(found[1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow  # a training and all measurements
def test_the_whole_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "satellite.md").write_text("".join(f"<!-- {name} -->\n<!-- end -->\n" for name in landsat_tables.MARKS))
    monkeypatch.setattr(landsat_tables, "PAGE", tmp_path / "satellite.md")
    monkeypatch.setattr(landsat_tables, "IMAGE", tmp_path / "landsat.png")
    scene = np.random.default_rng(0).integers(0, 256, NUMBERS.shape, np.uint8)
    words = ["--steps", "4", "--n", "3", "--folder", str(tmp_path / "runs")]
    main(["landsat_tables", "--tif", str(write_scene(tmp_path / "scene.tif", scene)), *words])
    main(["landsat_tables", *words])
    main(["landsat_tables", "report", *words])
    found = json.loads((tmp_path / "runs" / "result.json").read_text())
    (noise,) = [
        each for each in found["metrics"] if (each["tiles"], each["reference"]) == ("Gaussian noise", "training tiles")
    ]
    assert noise["values"]["spectrum_db"] < 1  # the scene is noise itself
    assert np.shape(found["correlations"]["samples"]) == (5, 5)
    assert "| 96 | 4 | 16 |" in (tmp_path / "satellite.md").read_text()
    assert (tmp_path / "landsat.png").exists()
