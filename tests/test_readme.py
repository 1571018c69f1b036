"""README.md: every command in it does what it says, or at least is understood."""

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


def commands(title=None):
    """Every command line of the bash blocks, or of those with this title, as words; ``a && b`` is two."""
    texts = [text for language, name, text in BLOCKS if language == "bash" and title in (None, name.strip())]
    lines = [line for text in texts for line in text.splitlines() if line]
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


OURS = [words[words.index("lightning_ddpm") + 1 :] for words in commands() if "lightning_ddpm" in words]
CONVERSIONS = [words[words.index("lightning_ddpm") + 1 :] for words in commands("diffusers")]
TRAINING = [each for each in OURS if each[0] in ("fit", "validate", "test", "predict") and each not in CONVERSIONS]
SHIPPED = "checkpoints/pretrained/"


def draws(arguments):
    """Whether it samples from a checkpoint that ships."""
    return arguments[0] == "sample" and any(word.startswith(SHIPPED) for word in arguments)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A temporary folder to work in that has the repository's configs and shipped checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pretrained").symlink_to(REPOSITORY / "checkpoints" / "pretrained")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_line_says_what_it_is():
    assert "Denoising Diffusion Probabilistic Models" in README.splitlines()[0]


def test_the_quickstart_is_one_line_that_installs_and_runs():
    assert blocks("bash", "quickstart") == [f"{QUICKSTART}\n"]


def test_the_tests_are_one_line_that_installs_and_runs_them():
    (line,) = blocks("bash", "test")
    install, test = line.strip().split(" && ")
    extra = re.fullmatch(r"pip install -e '\.\[(\w+)\]'", install)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert any(each.startswith("pytest") for each in project["optional-dependencies"][extra[1]])
    assert shlex.split(test)[:3] == ["python", "-m", "pytest"]


def test_there_are_commands_to_train_to_sample_and_to_use_several_machines():
    assert {"fit", "sample"} <= {arguments[0] for arguments in OURS}
    assert any(draws(arguments) for arguments in OURS)
    assert {"torchrun", "srun"} <= {words[0] for words in commands()}


def test_every_command_line_starts_a_program_that_is_known():
    for words in commands():
        assert words[0] in ("python", "pip", "torchrun", "srun", "tensorboard", "lightning-ddpm"), words


def test_the_quickstart_trains(elsewhere, command):
    arguments = shlex.split(QUICKSTART.split(" -m lightning_ddpm ")[1])
    tiny = ("--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu")
    status, out, err = command(*arguments, *tiny)
    assert status == 0, err
    assert "step 2 of 2" in out
    assert torch.load(elsewhere / "checkpoints/digits/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("arguments", [each for each in OURS if draws(each)], ids=" ".join)
def test_a_sample_command_draws_images(arguments, elsewhere, command):
    status, _, err = command(*arguments, "--n", "3")
    assert status == 0, err
    out = elsewhere / arguments[arguments.index("--out") + 1]
    drawn = [np.asarray(Image.open(out / f"{index:06d}.png")) for index in range(3)]
    assert all(image.max() > 128 > image.min() for image in drawn)  # ink and paper
    assert (out / "grid.png").is_file()
    if "--trajectory" in arguments:
        with Image.open(elsewhere / arguments[arguments.index("--trajectory") + 1]) as animation:
            assert animation.n_frames > 10


@pytest.mark.parametrize("arguments", [each for each in OURS if each[0] == "sample" and not draws(each)], ids=" ".join)
def test_a_large_sample_command_is_understood(arguments, elsewhere, command):
    status, _, err = command(
        *arguments
    )  # its checkpoint is yet to be trained: said only when all options are understood
    assert status == 2
    checkpoint = arguments[arguments.index("--ckpt") + 1]
    assert f"error: there is no checkpoint {checkpoint}" in err


@pytest.mark.parametrize("arguments", [each for each in OURS if each[0] == "evaluate"], ids=" ".join)
def test_an_evaluation_is_run_or_understood(arguments, elsewhere, command):
    status, _, err = command(*arguments)
    if any(word.startswith(SHIPPED) for word in arguments):
        assert status == 0, err
        assert (elsewhere / arguments[arguments.index("--out") + 1]).is_file()
    else:  # what it judges is yet to be made: said only when all options are understood
        assert status == 2
        assert re.match(f"error: there is no (checkpoint|folder) {arguments[2]}", err)


@pytest.mark.parametrize("arguments", [each for each in OURS if each[0] == "restore"], ids=" ".join)
def test_a_folder_of_images_is_restored(arguments, elsewhere, command):
    (elsewhere / "DIR").mkdir()
    save_image(Digits().open(elsewhere, "test").__getitems__([0])[0][0], elsewhere / "DIR" / "a.png")
    status, _, err = command(*arguments, "--steps", "4")
    assert status == 0, err
    assert (elsewhere / arguments[arguments.index("--out") + 1] / "side_by_side.png").is_file()


@pytest.mark.parametrize("arguments", [each for each in OURS if each[0] == "check-data"], ids=" ".join)
def test_a_check_is_understood(arguments, elsewhere, command):
    status, _, err = command(*arguments)
    assert status == 2
    assert err == "error: there is no folder DIR; point data.root at your images\n"  # options come first


@pytest.mark.parametrize("arguments", TRAINING, ids=" ".join)
def test_a_training_command_is_understood(arguments, elsewhere, command):
    status, out, err = command(*arguments, "--print_config")
    assert status == 0, err
    config = yaml.safe_load(out)
    for option, value in pairwise(arguments):
        if option.startswith("--") and option != "--config":
            given = config
            for name in option[2:].split("."):
                given = given[name]
            assert str(given) == value


def test_a_model_goes_to_diffusers_and_back_and_on_training(elsewhere, command):
    export, back, fit = CONVERSIONS
    assert (export[0], back[0], fit[0]) == ("export", "import", "fit")
    for arguments in (export, back, [*fit, "--print_config"]):
        status, out, err = command(*arguments)
        assert status == 0, err
    assert {"sampler", "optimizer", "network"} <= yaml.safe_load(out)["model"]["init_args"].keys()
    assert (elsewhere / "imported.ckpt").is_file()


@pytest.mark.parametrize("words", [each for each in commands() if each[0] == "torchrun"], ids=" ".join)
def test_torchrun_understands_its_options(words):
    options = torchrun_parser().parse_args(words[1:])
    assert options.module
    assert options.training_script == "lightning_ddpm"
    nodes, devices = (words[words.index(f"--trainer.{name}") + 1] for name in ("num_nodes", "devices"))
    assert (options.nnodes, options.nproc_per_node) == (nodes, devices)


def test_the_recipes_batch_stays_128_on_several_devices():
    for words in commands():
        if "configs/cifar10.yaml" in words:
            size = {"--trainer.devices": 1, "--trainer.num_nodes": 1, "--data.batch_size": 128}
            for name in size.keys() & set(words):
                size[name] = int(words[words.index(name) + 1])
            assert np.prod(list(size.values())) == 128, words


def test_the_python_block_runs(elsewhere):
    (code,) = blocks("python")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    images = torch.cat(names["images"])
    assert images.shape == (8, 1, 8, 8)
    assert images.dtype == torch.uint8


OWN_NETWORK = """
import torch

class MyNetwork(torch.nn.Module):
    def __init__(self, channels: int | None = None, size: int | None = None) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t, t):
        return self.layer(x_t)
"""


@pytest.mark.filterwarnings("ignore:.*iscarding init_args")
def test_the_yaml_block_brings_ones_own_network_and_sampler_in(elsewhere, command, monkeypatch):
    (block,) = blocks("yaml")
    (elsewhere / "own.yaml").write_text(block)
    class_path = yaml.safe_load(block)["model"]["init_args"]["network"]["class_path"]
    package, name = class_path.split(".")
    (elsewhere / f"{package}.py").write_text(OWN_NETWORK.replace("MyNetwork", name))
    monkeypatch.syspath_prepend(elsewhere)
    tiny = ("--trainer.max_steps", "1", "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu")
    status, _, err = command("fit", "--config", "configs/digits.yaml", "--config", "own.yaml", *tiny)
    sys.modules.pop(package, None)
    assert status == 0, err
    model = torch.load(elsewhere / "checkpoints/digits/last.ckpt", weights_only=True)["hyper_parameters"]
    assert model["network"] == {"class_path": class_path, "init_args": {"channels": 1, "size": 8}}
    wanted = yaml.safe_load(block)["model"]["init_args"]["sampler"]["init_args"]["steps"]
    assert model["sampler"]["init_args"]["steps"] == wanted


def test_files_that_it_names_are_there_and_pictures_are_small():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    missing = [link for link in links if not (REPOSITORY / link).exists()]
    assert missing == []
    large = [
        link for link in links if (REPOSITORY / link).suffix == ".png" and (REPOSITORY / link).stat().st_size > 3e5
    ]
    assert large == []


def test_every_config_is_told_of_and_every_one_told_of_is_there():
    told = set(re.findall(r"\b(\w+\.yaml)", README)) - {"config.yaml", "imported.yaml"}
    there = {path.name for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert told - there == set()
    assert there - told <= {"digits_features.yaml"}  # made the feature network; not an experiment of its own
