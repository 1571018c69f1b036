"""``new`` writes a project for every answer; its tests, in tests/test_wheel.py, run where it is installed."""

import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import REPOSITORY
from helpers.command_outputs import get_error_sentence, read_files
from PIL import Image

from lightning_ddpm.commands.new import CONDITIONS, DATA, LOGGERS, write_project
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.shipped import TEMPLATE

ALWAYS = {"pyproject.toml", "README.md", ".gitignore", ".github/workflows/test.yml", "run.sbatch", "configs/train.yaml"}
MODULES = {"__init__.py", "network.py", "loss.py", "data.py"}
MONITORS = {"digits": "val/fd_digits", "paired": "val/psnr"}


@pytest.mark.parametrize("answers", [*itertools.product(DATA, LOGGERS, CONDITIONS)], ids="-".join)
def test_every_combination_of_answers_is_a_complete_project(answers, tmp_path):
    data, logger, condition = answers
    written = write_project(tmp_path / "tiles", "tiles", answers)
    assert set(written) == ALWAYS | {f"tiles/{name}" for name in MODULES} | {"tests/test_tiles.py"}
    files = {name.as_posix(): content.decode() for name, content in read_files(tmp_path / "tiles").items()}
    assert set(files) == set(written)
    for name, text in files.items():
        assert not re.search(r"my.project|#: |LIGHTNING_DDPM_VERSION|cifar10", text), name
        assert name.endswith(".py") or "\n\n\n" not in text, name
        if name.endswith(".py"):
            compile(text, name, "exec")
    lines = [line.strip() for line in files["configs/train.yaml"].splitlines()]
    assert [line for line in lines if line.startswith(("logger:", "monitor:", "max_steps:"))].count("logger:") <= 1
    config = yaml.safe_load(files["configs/train.yaml"])
    model, trainer = config["model"]["init_args"], config["trainer"]
    assert model["network"]["init_args"]["classes"] == (None if condition == "conditional" else 0)
    hidden = {"conditional": 0.1, "unconditional": 0.0 if data == "paired" else None}[condition]
    assert model.get("label_dropout") == hidden
    assert ("ConcatenatedImage" in files["tiles/network.py"]) == (data == "paired")
    assert ("logger" in trainer) == (logger != "tensorboard")
    assert logger in str(trainer.get("logger", "tensorboard")).lower()
    assert trainer["callbacks"][-1]["init_args"]["monitor"] == MONITORS.get(data, "val/loss")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["entry-points"] == {"lightning_ddpm.trust": {"tiles": "tiles"}}
    assert any(each.startswith(logger) for each in project["dependencies"]) == (logger in ("wandb", "mlflow"))


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """A folder with a project for every kind of data, with classes and without."""
    folder = tmp_path_factory.mktemp("projects")
    for data, condition in itertools.product(DATA, CONDITIONS):
        write_project(folder / f"{data}_{condition}", "tiles", (data, "csv", condition))
    return folder


def test_every_extension_point_is_an_example_of_10_to_30_lines(projects):
    files = [path for name in ("network", "loss", "data") for path in projects.glob(f"*/tiles/{name}.py")]
    assert len(files) == 3 * len(DATA) * len(CONDITIONS)
    for path in files:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert 10 <= len(lines) <= 30, (path, len(lines))


def test_ruff_finds_nothing_in_a_new_project(projects):
    pytest.importorskip("ruff", reason="there is no ruff here; pip install '.[dev]' installs it")
    for words in (("check",), ("format", "--check")):
        ran = subprocess.run([sys.executable, "-m", "ruff", *words, "--no-cache", projects], capture_output=True)
        assert ran.returncode == 0, ran.stdout.decode()


def test_no_key_of_a_config_stands_there_twice(tmp_path):
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    Strict.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, True))
    for data, logger, condition in itertools.product(DATA, LOGGERS, CONDITIONS):
        folder = tmp_path / f"{data}_{logger}_{condition}"
        write_project(folder, "tiles", (data, logger, condition))
        yaml.load((folder / "configs" / "train.yaml").read_text(), Strict)


def load_source(tmp_path, data):
    """Write a conditional project for such data, and return the class in its data.py."""
    write_project(tmp_path / "tiles", "tiles", (data, "csv", "conditional"))
    spec = importlib.util.spec_from_file_location("tiles_data", tmp_path / "tiles" / "tiles" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Data


def test_a_file_beside_the_classes_of_a_new_project_is_refused_in_a_sentence(tmp_path):
    data = load_source(tmp_path, "folder")()
    (tmp_path / "images" / "a").mkdir(parents=True)
    for index in range(10):
        (tmp_path / "images" / "a" / f"{index}.png").touch()
    data.prepare(tmp_path / "images")
    (tmp_path / "images" / "10.png").touch()
    with pytest.raises(UserError, match=r"10\.png lies beside the folders of the classes; move it into one of them"):
        data.prepare(tmp_path / "images")


def test_labels_of_an_array_that_are_no_classes_are_refused_in_a_sentence(tmp_path):
    data = load_source(tmp_path, "array")(channels=1, size=4)
    np.save(tmp_path / "images.npy", np.arange(20 * 16, dtype=np.uint16).astype(np.uint8).reshape(20, 1, 4, 4))
    data.prepare(tmp_path)
    assert data.class_names(tmp_path) == []
    assert (data.open(tmp_path, "train").labels == -1).all()
    wrong = np.arange(19), np.zeros((20, 1), int), np.linspace(0, 1, 20), np.arange(20) - 2, np.array(["a"] * 20)
    for labels in wrong:
        np.save(tmp_path / "labels.npy", labels)
        with pytest.raises(UserError, match=r"labels.npy must hold a class 0, 1, ... of each of the 20 images"):
            data.prepare(tmp_path)
    np.save(tmp_path / "labels.npy", (np.arange(20) % 4 - 1).astype(np.int8))
    data.prepare(tmp_path)
    assert data.class_names(tmp_path) == ["0", "1", "2"]
    assert data.open(tmp_path, "test").labels.tolist() == [9 % 4 - 1, 19 % 4 - 1]
    assert data.open(tmp_path, "test").images.flatten(1)[:, 0].tolist() == [9 * 16, 19 * 16 % 256]


def test_a_pair_without_its_partner_is_refused_in_a_sentence(tmp_path):
    data = load_source(tmp_path, "paired")(size=4)
    for index in range(10):
        for folder, colour in (("input", (0, 0, 10 * index)), ("target", (10 * index, 0, 0))):
            (tmp_path / folder / f"class_{index % 2}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), colour).save(tmp_path / folder / f"class_{index % 2}" / f"{index}.png")
    data.prepare(tmp_path)
    assert data.class_names(tmp_path) == ["class_0", "class_1"]
    images, given = data.open(tmp_path, "train").__getitems__(range(9))
    assert torch.equal(images[:, 0], given.image[:, 2])  # each with its own partner
    assert given.label.tolist() == [0] * 5 + [1] * 4
    (tmp_path / "input" / "class_0" / "4.png").rename(tmp_path / "input" / "4.png")
    with pytest.raises(UserError, match=r"input and target do not both hold 4\.png; add its partner, or delete it"):
        data.prepare(tmp_path)
    (tmp_path / "target" / "class_0" / "4.png").rename(tmp_path / "target" / "4.png")
    with pytest.raises(UserError, match=r"4\.png lies beside the folders of the classes; move it into one of them"):
        data.prepare(tmp_path)


def test_a_conditional_project_refuses_data_without_classes(command, monkeypatch, tmp_path):
    write_project(tmp_path / "unlabelled", "unlabelled", ("array", "csv", "conditional"))
    np.save(tmp_path / "images.npy", np.zeros((20, 1, 32, 32), np.uint8))
    monkeypatch.chdir(tmp_path / "unlabelled")
    monkeypatch.syspath_prepend(tmp_path / "unlabelled")
    status, _, err = command("fit", "--config", "configs/train.yaml", "--data.root", tmp_path)
    expected = "the images have no classes; label them, or set model.network.classes to 0"
    assert expected in get_error_sentence(status, err)


@pytest.mark.parametrize(
    ("data", "condition", "expected"),
    [
        ("folder", "conditional", "there are not ten PNG files in"),
        ("folder", "unconditional", "there are not ten PNG files in"),
        ("array", "conditional", "there is no images.npy in"),
        ("paired", "conditional", "there are not ten PNG files in"),
        ("paired", "unconditional", "there are not ten PNG files in"),
    ],
)
def test_data_that_are_not_there_are_named(data, condition, expected, command, monkeypatch, tmp_path):
    name = f"absent_{data}_{condition}"
    write_project(tmp_path / name, name, (data, "csv", condition))
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.syspath_prepend(tmp_path / name)
    status, _, err = command("fit", "--config", "configs/train.yaml")
    assert expected in get_error_sentence(status, err)


def test_the_job_script_is_that_of_the_repository():
    assert (TEMPLATE.get_folder() / "run.sbatch").read_bytes() == (REPOSITORY / "scripts" / "train.sbatch").read_bytes()


def test_the_command_writes_the_project_and_names_the_next_commands(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = command("new", "my-tiles", "--data", "folder", "--conditional")
    assert status == 0, err
    assert (tmp_path / "my-tiles" / "my_tiles" / "network.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["my-tiles"]
    assert 'name = "my-tiles"' in (tmp_path / "my-tiles" / "pyproject.toml").read_text()
    assert "cd my-tiles && pip install -e '.[test]' && pytest" in out
    assert "fit --config configs/train.yaml --data.root DIR" in out
    status, _, err = command("new", "my-tiles")
    assert "my-tiles exists already" in get_error_sentence(status, err)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "new needs --folder"),
        (("class",), "and no word of Python's own, got class"),
        (("Zoë",), "the project is a Python package, whose name must be a letter a-z, then a-z, 0-9 and _ only"),
        (("1st",), "the project is a Python package, whose name must be a letter a-z, then a-z, 0-9 and _ only"),
        (("json",), "json is the name of a package that Python has already"),
        (("torch",), "torch is the name of a package that Python has already"),
        (("mine", "--data", "video"), "--data expects digits or folder or array or paired, got"),
        (("mine", "--dat", "array"), "there is no option --dat"),
    ],
)
def test_bad_answers_are_refused_in_a_sentence(arguments, expected, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = command("new", *arguments)
    assert expected in get_error_sentence(status, err)
    assert list(tmp_path.iterdir()) == []
