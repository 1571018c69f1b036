"""A folder of arrays by the command line: samples in the data's own type and units, and what such a model refuses."""

import numpy as np
import pytest
from helpers.command_line import small_arrays, write_yaml
from PIL import Image

from lightning_ddpm.data.tiff import read_tiff

N, SHAPE = 40, (5, 6, 10)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Return a folder of 40 fields of 5 channels around 280, float32."""
    folder, random = tmp_path_factory.mktemp("fields"), np.random.default_rng(0)
    for index in range(N):
        np.save(folder / f"{index:02d}.npy", (280 + 5 * random.standard_normal(SHAPE)).astype(np.float32))
    return folder


@pytest.mark.slow  # six commands
def test_a_model_of_fields_samples_fields_and_refuses_what_is_for_bytes(command, fields, tmp_path) -> None:
    run = tmp_path / "run"
    config = write_yaml(tmp_path / "config.yaml", small_arrays(run))
    status, out, err = command("fit", "--config", config, "--data.root", fields)
    assert status == 0, err
    assert "of 5x6x10" in out
    with Image.open(run / "samples" / "step-0000002.png") as grid:
        assert grid.width > 5 * 2 * SHAPE[2]  # five strips in each of two columns
    ckpt, samples = run / "last.ckpt", tmp_path / "samples"
    words = ("sample", "--ckpt", ckpt, "--n", 3, "--out", samples, "--steps", 2, "--accelerator", "cpu")
    status, out, err = command(*words)
    assert status == 0, err
    images = np.stack([np.load(samples / f"{index:06d}.npy") for index in range(3)])
    assert (images.dtype, images.shape) == (np.float32, (3, *SHAPE))
    assert 230 < images.mean() < 330
    (samples / "000001.npy").write_bytes(b"cut off")
    status, out, err = command(*words)
    assert status == 0, err
    assert "1 damaged images" in out
    status, _, err = command(*words, "--preview", "Channels", "--preview.channels", "[5]")
    assert status == 2
    assert "Channels([5]) shows channel 5, and the images have the channels 0..4" in err
    assert np.array_equal(np.load(samples / "000001.npy"), images[1])
    tiff = (*words[:5], "--out", tmp_path / "tiff", *words[7:], "--format", "tiff", "--npz", tmp_path / "all.npz")
    status, out, err = command(*tiff)
    assert status == 0, err
    with np.load(tmp_path / "all.npz") as file:
        assert np.array_equal(file["arr_0"], np.moveaxis(images, 1, 3))
    assert np.array_equal(read_tiff(tmp_path / "tiff" / "000002.tif"), images[2])
    status, _, err = command(*words, "--format", "tiff")
    assert (status, "images of another set: their format is None, requested is .tif" in err) == (2, True), err

    status, _, err = command("evaluate", "--ckpt", ckpt, "--metrics", "bpd", "--accelerator", "cpu")
    assert status == 2
    assert "continuous values, which have a density" in err
    status, _, err = command("evaluate", "--ckpt", ckpt, "--n", 4, "--metrics", "fid", "--accelerator", "cpu")
    assert status == 2
    assert "takes grayscale or RGB images, got 5 channels" in err
    metrics = ("--n", 4, "--steps", 2, "--metrics", "spectrum", "marginals", "--accelerator", "cpu")
    status, out, err = command("evaluate", "--ckpt", ckpt, *metrics)
    assert status == 0, err
    assert "spectrum_db/channel_4" in out
    assert "reference: 36 images" in out
    restore = ("--task", "sdedit", "--strength", 0.5, "--images", fields, "--out", tmp_path / "restored")
    status, _, err = command("restore", "--ckpt", ckpt, *restore, "--accelerator", "cpu")
    assert status == 2
    assert "restore needs images of uint8" in err
    assert "; give another --ckpt" in err
    status, _, err = command("export", "--ckpt", ckpt, "--format", "diffusers", "--out", tmp_path / "exported")
    assert status == 2
    assert "export to diffusers needs images of uint8" in err
    assert "; give --format release" in err


def test_the_range_of_a_resumed_run_must_not_change(command, fields, tmp_path) -> None:
    run = tmp_path / "run"
    config = write_yaml(tmp_path / "config.yaml", small_arrays(run))
    fit = ("fit", "--config", config, "--data.root", fields)
    status, _, err = command(*fit)
    assert status == 0, err
    other = ("--ckpt_path", "last", "--data.source.low", 200, "--data.source.high", 400, "--trainer.max_steps", 3)
    status, _, err = command(*fit, *other)
    assert status == 2
    assert "cannot be resumed with another value" in err
