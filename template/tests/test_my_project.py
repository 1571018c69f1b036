"""The project trains, resumes and generates images, all by the command line; nothing here takes longer than seconds."""

from pathlib import Path

import numpy as np  #: array
import pytest
import torch
from lightning_ddpm.commands.main import main
from PIL import Image

CONFIG = Path(__file__).parents[1] / "configs" / "train.yaml"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a run of 20 steps on the CPU, in a folder of its own."""
    run, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)  #: array
    np.save(data / "images.npy", random.integers(0, 256, (40, 1, 32, 32), dtype=np.uint8))  #: array
    np.save(data / "labels.npy", np.arange(40) % 3)  #: array conditional
    for index in range(40):  #: folder|paired
        path = data / f"class_{index % 2}" / f"{index}.png"  #: folder
        path.parent.mkdir(exist_ok=True)  #: folder
        Image.effect_noise((40, 36), 50).convert("RGB").save(path)  #: folder
        for each in ("input", "target"):  #: paired
            path = data / each / f"class_{index % 2}" / f"{index}.png"  #: paired
            path.parent.mkdir(parents=True, exist_ok=True)  #: paired
            Image.effect_noise((32, 32), 50).convert("RGB").save(path)  #: paired
    few = ["--trainer.max_steps", "20", "--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "20"]
    few += ["--trainer.callbacks.Evaluation.every_n_steps", "20"]  #: digits
    few += ["--trainer.callbacks.PairQuality.every_n_steps", "20"]  #: paired
    few += ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--data.batch_size", "8"]
    few += ["--model.network.width", "16", "--trainer.default_root_dir", str(run), "--data.root", str(data)]
    assert main(["fit", "--config", str(CONFIG), *few]) == 0
    return few


def get(options: list[str], name: str) -> Path:
    return Path(options[options.index(name) + 1])


def read(options: list[str]) -> dict:
    return torch.load(get(options, "--trainer.default_root_dir") / "last.ckpt", weights_only=True)


def test_it_trains_to_finite_weights(options: list[str]) -> None:
    trained = read(options)
    assert trained["global_step"] == 20
    assert all(weight.isfinite().all() for weight in trained["state_dict"].values())
    assert trained["hyper_parameters"]["network"]["class_path"] == "my_project.network.Network"
    classes = trained["hyper_parameters"]["network"]["init_args"]["classes"]
    assert classes == 0  #: unconditional
    assert classes == 10  #: conditional digits
    assert classes == 3  #: conditional array
    assert classes == 2  #: conditional folder|paired


def test_a_run_that_is_resumed_goes_on(options: list[str]) -> None:
    before = read(options)["state_dict"]
    more = ["--trainer.max_steps", "22", "--ckpt_path", "last"]
    assert main(["fit", "--config", str(CONFIG), *options, *more]) == 0
    after = read(options)
    assert after["global_step"] == 22
    assert any(not torch.equal(before[name], weight) for name, weight in after["state_dict"].items())


def test_its_checkpoint_generates_images_without_further_settings(options: list[str], tmp_path: Path) -> None:
    checkpoint = get(options, "--trainer.default_root_dir") / "last.ckpt"
    sample = ["sample", "--ckpt", str(checkpoint), "--n", "2", "--steps", "3", "--out", str(tmp_path)]
    sample += ["--condition_images", str(get(options, "--data.root") / "input")]  #: paired
    sample += ["--guidance", "2"]  #: conditional
    assert main([*sample, "--accelerator", "cpu"]) == 0
    first, second = (Image.open(tmp_path / f"00000{index}.png") for index in range(2))
    assert first.size == (8, 8)  #: digits
    assert first.size == (32, 32)  #: folder|array|paired
    assert first.tobytes() != second.tobytes()
