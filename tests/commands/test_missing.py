"""Fields with a land mask by the command line: training, samples, and what is refused."""

import numpy as np
import pytest
from helpers.command_line import small_arrays, write_yaml
from helpers.command_outputs import get_error_sentence
from PIL import Image

from lightning_ddpm.models.checkpoint import load

N, SHAPE = 20, (2, 6, 10)
LAND = np.zeros(SHAPE, bool)
LAND[0, :3, :4] = True  # the second channel has values there, as air temperature beside that of the sea


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("fields"), np.random.default_rng(0)
    for index in range(N):
        field = (280 + 5 * random.standard_normal(SHAPE)).astype(np.float32)
        np.save(folder / f"{index:02d}.npy", np.where(LAND, np.float32(np.nan), field))
    return folder


def small_config(folder, source=None):
    """Return the small config of arrays with a network that is given the mask."""
    config = small_arrays(folder)
    conditions = [{"class_path": "lightning_ddpm.networks.ConcatenatedMask"}]
    config["model"]["init_args"]["network"]["init_args"].update(multipliers=[1, 2], conditions=conditions)
    config["data"]["source"]["init_args"].update({"nan": "mask"} | (source or {}))
    return config


def test_samples_of_fields_with_land_have_nan_there(command, fields, tmp_path) -> None:
    run, samples = tmp_path / "run", tmp_path / "samples"
    config = write_yaml(tmp_path / "config.yaml", small_config(run))
    status, _, err = command("fit", "--config", config, "--data.root", fields)
    assert status == 0, err
    with Image.open(run / "samples" / "step-0000002.png") as grid:
        assert (np.asarray(grid) == 255).all(2).any()  # land is white
    words = ("--ckpt", run / "last.ckpt", "--n", 3, "--accelerator", "cpu")
    status, _, err = command("sample", *words, "--steps", 2, "--out", samples)
    assert status == 0, err
    for index in range(3):
        image = np.load(samples / f"{index:06d}.npy")
        assert image.dtype == np.float32
        assert np.array_equal(np.isnan(image), LAND)
        assert 200 < np.nanmean(image) < 360
    assert np.array_equal(load(run / "last.ckpt").network.conditions[0].valid.numpy(), ~LAND)
    status, _, err = command("evaluate", *words, "--reference", fields, "--metrics", "marginals")
    assert "evaluate needs images with a value in every pixel" in get_error_sentence(status, err)
    more = ("--ckpt_path", "last", "--trainer.max_steps", 3)
    status, out, err = command("fit", "--config", run / "config.yaml", *more)
    assert status == 0, err
    assert "resuming after step 2" in out
    assert "changed: model" not in out
    status, _, err = command("fit", "--config", run / "config.yaml", *more, "--data.source.nan", "refuse")
    assert "it has the value nan; fill in what is missing" in get_error_sentence(status, err)


def test_a_network_without_the_mask_and_one_without_missing_values_are_refused(command, fields, tmp_path) -> None:
    config = small_config(tmp_path / "run")
    del config["model"]["init_args"]["network"]["init_args"]["conditions"]
    words = ("fit", "--config", write_yaml(tmp_path / "config.yaml", config), "--data.root", fields)
    status, _, err = command(*words)
    assert "list lightning_ddpm.networks.ConcatenatedMask in model.network.conditions" in get_error_sentence(
        status, err
    )
    config = small_config(tmp_path / "run", {"nan": "refuse"})
    folder = tmp_path / "complete"
    folder.mkdir()
    for path in fields.iterdir():
        np.save(folder / path.name, np.nan_to_num(np.load(path), nan=270))
    words = ("fit", "--config", write_yaml(tmp_path / "config.yaml", config), "--data.root", folder)
    status, _, err = command(*words)
    assert "ConcatenatedMask is for data in which values are missing" in get_error_sentence(status, err)
