"""README.md: its commands and its example module run; commands that need days or other machines are parsed."""

import re
import shlex
import sys
import tomllib
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import REPOSITORY
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser

from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import save_image

README = (REPOSITORY / "README.md").read_text() if (REPOSITORY / "README.md").is_file() else ""
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
QUICKSTART = "pip install -e . && python -m lightning_ddpm fit --config configs/digits.yaml"


def blocks(language, title=""):
    return [text for found, name, text in BLOCKS if (found, name.strip()) == (language, title)]


def list_commands():
    """Return every command line of the bash blocks as words; ``a && b`` is two commands."""
    lines = [line for language, _, text in BLOCKS if language == "bash" for line in text.splitlines() if line]
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


COMMANDS = [words[words.index("lightning_ddpm") + 1 :] for words in list_commands() if "lightning_ddpm" in words]
SHIPPED = "checkpoints/pretrained/"


def select(name, shipped=None):
    """Return the commands of that name; ``shipped`` selects those with, or without, a checkpoint that ships."""
    found = [each for each in COMMANDS if each[0] == name]
    return [each for each in found if shipped in (None, any(word.startswith(SHIPPED) for word in each))]


@pytest.fixture
def workdir(monkeypatch, tmp_path):
    """Work in a temporary folder that has the repository's configs and shipped checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pretrained").symlink_to(REPOSITORY / "checkpoints" / "pretrained")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_line_names_the_paper():
    assert "Denoising Diffusion Probabilistic Models" in README.splitlines()[0]


def test_it_is_short_and_states_the_python_version():
    assert len(README.splitlines()) <= 160
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"Python {project['requires-python'].replace('>=', '>= ')}" in README


def test_the_quickstart_is_one_line_that_installs_and_runs():
    assert blocks("bash", "quickstart") == [f"{QUICKSTART}\n"]


def test_the_test_command_is_one_line_that_installs_and_tests():
    (line,) = blocks("bash", "test")
    install, test = line.strip().split(" && ")
    extra = re.fullmatch(r"pip install -e '\.\[(\w+)\]'", install)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert any(each.startswith("pytest") for each in project["optional-dependencies"][extra[1]])
    assert shlex.split(test)[:3] == ["python", "-m", "pytest"]


def test_there_are_commands_to_train_to_sample_and_to_use_several_machines():
    assert select("fit")
    assert select("sample", shipped=True)
    assert {"torchrun", "srun"} <= {words[0] for words in list_commands()}


def test_every_command_starts_a_known_program():
    for words in list_commands():
        assert words[0] in ("python", "pip", "torchrun", "srun"), words


def test_the_quickstart_trains(workdir, command):
    arguments = shlex.split(QUICKSTART.split(" -m lightning_ddpm ")[1])
    tiny = ("--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu")
    status, out, err = command(*arguments, *tiny)
    assert status == 0, err
    assert "step 2 of 2" in out
    assert torch.load(workdir / "checkpoints/digits/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("arguments", select("sample", shipped=True), ids=" ".join)
def test_a_sample_command_generates_images(arguments, workdir, command):
    status, _, err = command(*arguments, "--n", "3")
    assert status == 0, err
    out = workdir / arguments[arguments.index("--out") + 1]
    images = [np.asarray(Image.open(out / f"{index:06d}.png")) for index in range(3)]
    assert all(image.max() > 128 > image.min() for image in images)  # ink and paper
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize("arguments", select("sample", shipped=False), ids=" ".join)
def test_a_sample_command_of_a_large_model_is_parsed(arguments, workdir, command):
    status, _, err = command(*arguments)
    assert status == 2
    checkpoint = arguments[arguments.index("--ckpt") + 1]
    assert f"error: there is no checkpoint {checkpoint}" in err  # reported after all options are parsed


@pytest.mark.parametrize("arguments", select("evaluate"), ids=" ".join)
def test_an_evaluate_command_runs(arguments, workdir, command):
    status, _, err = command(*arguments)
    assert status == 0, err
    assert (workdir / arguments[arguments.index("--out") + 1]).is_file()


@pytest.mark.parametrize("arguments", select("restore"), ids=" ".join)
def test_a_restore_command_restores_a_folder_of_images(arguments, workdir, command):
    (workdir / "DIR").mkdir()
    save_image(Digits().open(workdir, "test").__getitems__([0])[0][0], workdir / "DIR" / "a.png")
    status, _, err = command(*arguments, "--steps", "4")
    assert status == 0, err
    assert (workdir / arguments[arguments.index("--out") + 1] / "side_by_side.png").is_file()


@pytest.mark.parametrize("arguments", select("fit"), ids=" ".join)
def test_a_fit_command_is_parsed(arguments, workdir, command):
    status, out, err = command(*arguments, "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    for option, value in pairwise(arguments):
        if option.startswith("--") and option != "--config":
            given = config
            for name in option[2:].split("."):
                given = given[name]
            assert str(given) == value


def test_a_model_is_exported_imported_and_fine_tuned(workdir, command):
    (export,) = select("export")
    back = ["import", "--folder", export[export.index("--out") + 1], "--out", "imported.ckpt"]
    tune = ["fit", "--config", "configs/digits.yaml", "--config", "imported.yaml", "--ckpt_path", "imported.ckpt"]
    for arguments in (export, back, [*tune, "--print_config"]):
        status, out, err = command(*arguments)
        assert status == 0, err
    assert {"sampler", "optimizer", "network"} <= yaml.safe_load(out)["model"]["init_args"].keys()
    assert (workdir / "imported.ckpt").is_file()


@pytest.mark.parametrize("words", [each for each in list_commands() if each[0] == "torchrun"], ids=" ".join)
def test_torchrun_parses_its_options(words):
    options = torchrun_parser().parse_args(words[1:])
    assert options.module
    assert options.training_script == "lightning_ddpm"
    nodes, devices = (words[words.index(f"--trainer.{name}") + 1] for name in ("num_nodes", "devices"))
    assert (options.nnodes, options.nproc_per_node) == (nodes, devices)


def test_the_recipes_batch_stays_128_on_several_devices():
    for words in list_commands():
        if "configs/cifar10.yaml" in words:
            size = {"--trainer.devices": 1, "--trainer.num_nodes": 1, "--data.batch_size": 128}
            for name in size.keys() & set(words):
                size[name] = int(words[words.index(name) + 1])
            assert np.prod(list(size.values())) == 128, words


@pytest.mark.filterwarnings("ignore:.*iscarding init_args")
def test_the_example_module_trains_and_is_sampled(workdir, command, monkeypatch):
    (config,) = blocks("yaml")
    (workdir / "own.yaml").write_text(config)
    (workdir / "my_package.py").write_text("\n\n".join(blocks("python", "my_package.py")))
    monkeypatch.syspath_prepend(workdir)
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "my_package")
    tiny = ("--trainer.max_steps", "1", "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu")
    status, _, err = command("fit", "--config", "configs/digits.yaml", "--config", "own.yaml", *tiny)
    assert status == 0, err
    checkpoint = workdir / "checkpoints/digits/last.ckpt"
    model = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert model["network"] == {"class_path": "my_package.MyNetwork", "init_args": {"channels": 1, "size": 8}}
    assert model["objective"]["class_path"] == "my_package.L1"
    assert model["sampler"] == {"class_path": "my_package.MySampler", "init_args": {"steps": 20}}
    status, _, err = command("sample", "--ckpt", checkpoint, "--n", 2, "--out", "own_samples")
    sys.modules.pop("my_package", None)
    assert status == 0, err


def test_linked_files_exist_and_images_are_small():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
    images = [REPOSITORY / link for link in links if link.endswith(".png")]
    assert [path for path in images if path.stat().st_size > 3e5] == []
