"""Networks, objectives, samplers and sources of a user that break their contract end in a sentence that names them."""

import re
import textwrap
from pathlib import Path

import pytest
from helpers.command_line import read_yaml, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence
from PIL import Image

MODULE = """
import torch
from torch import nn
from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.diffusion import MarkovSampler, Objective, uniform_spacing, q_sample

class Network(nn.Module):
    def __init__(self, channels: int | None = None, size: int | None = None, classes: int | None = None) -> None:
        super().__init__()
        self.channels, self.size, self.classes = channels, size, classes
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t, t, label=None):
        assert self.classes or label is None
        return self.layer(x_t)

class NoClasses(nn.Module):
    def __init__(self, channels: int | None = None, size: int | None = None) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t, t):
        return self.layer(x_t)

class OnlyImages(NoClasses):
    def forward(self, x_t):
        return self.layer(x_t)

class Unlabelled(Network):
    def forward(self, x_t, t):
        return self.layer(x_t)

class WrongShape(NoClasses):
    def forward(self, x_t, t):
        return self.layer(x_t).mean(1)

class ReturnsTuple(NoClasses):
    def forward(self, x_t, t):
        return self.layer(x_t), None

class Forgetful(Network):
    def __init__(self, channels: int | None = None, size: int | None = None, classes: int | None = None) -> None:
        super().__init__(channels, size, classes)
        del self.classes

class Mean(Objective):
    def losses(self, denoise, x_0, t, eps):
        return (denoise(q_sample(denoise.schedule, x_0, t, eps), t).eps - eps).square().mean()

class Detached(Objective):
    def losses(self, denoise, x_0, t, eps):
        return (denoise(q_sample(denoise.schedule, x_0, t, eps), t).eps.detach() - eps).square().flatten(1).mean(1)

class NoSteps(MarkovSampler):
    def step(self, denoise, x_t, t, s, noise):
        return x_t

class FewArguments(MarkovSampler):
    steps, spacing = None, uniform_spacing
    def step(self, denoise, x_t, t):
        return x_t

class LosesChannels(MarkovSampler):
    def __init__(self, steps: int | None = 2) -> None:
        self.steps, self.spacing = steps, uniform_spacing

    def step(self, denoise, x_t, t, s, noise):
        return x_t.mean(1)

class NoStep(MarkovSampler):
    steps, spacing = None, uniform_spacing

class NoLabels(Digits):
    def open(self, root, split):
        data = super().open(root, split)
        return MemoryDataset(data.images, torch.full((len(data),), -1))

    def class_names(self, root):
        return []

class Floats(NoLabels):
    def open(self, root, split):
        data = super().open(root, split)
        data.images = data.images / 255
        return data
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes the module under a name of its own, because Python imports a name once."""
    name = f"contracts_{re.sub(r'[^0-9a-z]', '_', tmp_path.name)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def make_config(folder: Path, module: str, **parts: str):
    """Return the config of a short run with classes of the module in place of these parts."""
    config = tiny_digits(folder / "run")
    config["trainer"].update(callbacks=[], max_steps=2, limit_val_batches=0)
    for part, name in parts.items():
        owner = config["data"] if part == "source" else config["model"]["init_args"]
        owner[part] = {"class_path": f"{module}.{name}"}
    return write_yaml(folder / "config.yaml", config)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"network": "OnlyImages"}, "OnlyImages (FILE) must accept forward(x_t, t), and its signature is forward(x_t)"),
        ({"network": "Unlabelled"}, "Unlabelled (FILE) must accept forward(x_t, t, label), and its signature is"),
        ({"network": "WrongShape"}, "the network must return the shape of x_t, (2, 1, 8, 8), or twice its channels"),
        ({"network": "ReturnsTuple"}, "the network must return a tensor in the shape of x_t, got tuple"),
        ({"network": "Forgetful"}, "and Forgetful (FILE) has 0 classes; give one name for each class; a network with"),
        ({"objective": "Mean"}, "Mean (FILE).losses must return the loss of each image, a tensor of shape (2,)"),
        ({"objective": "Detached"}, "Detached (FILE).losses must return floats that depend on the network's output"),
        ({"sampler": "NoSteps"}, "NoSteps (FILE) has no attribute 'steps', which every MarkovSampler needs"),
        ({"sampler": "FewArguments"}, "FewArguments (FILE) must accept step(denoise, x_t, t, s, noise)"),
        ({"sampler": "LosesChannels"}, "LosesChannels (FILE).step must return x_s in the shape of x_t, (2, 1, 8, 8)"),
        ({"sampler": "NoStep"}, "NoStep (FILE) does not define step"),
        ({"source": "Floats"}, "the images of Floats (FILE) must be a uint8 tensor (n, channels, height, width)"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_broken_contract_is_a_sentence_before_the_first_step(parts, message, module, command, tmp_path) -> None:
    status, out, err = command("fit", "--config", make_config(tmp_path, module, **parts))
    sentence = get_error_sentence(status, err)
    assert message in re.sub(rf"\(\S*{module}\.py:\d+\)", "(FILE)", sentence)
    assert "run: " not in out
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_a_sampler_without_arguments_takes_no_steps(module, command, tmp_path) -> None:
    words = ("sample", "--ckpt", "digits", "--out", tmp_path / "out", "--sampler", f"{module}.FewArguments")
    status, _, err = command(*words, "--steps", 3)
    assert f"{module}.FewArguments takes no --steps; remove it" in get_error_sentence(status, err)


@pytest.mark.parametrize("network", ["Network", "NoClasses"])
@pytest.mark.parametrize("source", ["NoLabels", None])
def test_networks_with_and_without_classes_train_on_data_with_and_without_labels(
    network, source, module, command, tmp_path
) -> None:
    parts = {"network": network} | ({"source": source} if source else {})
    status, _, err = command("fit", "--config", make_config(tmp_path, module, **parts))
    assert status == 0, err
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("classes", "message"),
    [(None, "use labelled images, or give classes=0"), (10, "the data has classes=0 and the network has classes=10")],
)
def test_a_conditional_unet_states_that_it_needs_labels(classes, message, module, command, tmp_path) -> None:
    path = make_config(tmp_path, module, source="NoLabels")
    config = read_yaml(path)
    config["model"]["init_args"]["network"]["init_args"]["classes"] = classes
    status, _, err = command("fit", "--config", write_yaml(path, config))
    assert message in get_error_sentence(status, err)


def test_a_value_of_the_trust_variable_that_is_no_module_is_refused(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "a:b")
    status, _, err = command(
        "sample", "--ckpt", "checkpoints/pretrained/digits.ckpt", "--out", tmp_path / "out", "--n", "1"
    )
    assert "LIGHTNING_DDPM_TRUST lists modules, separated by commas" in get_error_sentence(status, err)


def test_resuming_with_images_of_another_size_names_the_option_of_the_data(command, tmp_path) -> None:
    for index in range(20):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("L", (16, 16), 10 * index).save(tmp_path / "images" / f"{index}.png")
    config = tiny_digits(tmp_path / "run")
    kept = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith("Checkpoints")]
    config["trainer"].update(callbacks=kept, max_steps=1, limit_val_batches=0)
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"channels": 1, "size": 8}}
    config["data"].update(source=source, root=str(tmp_path / "images"), batch_size=4)
    path = write_yaml(tmp_path / "config.yaml", config)
    status, _, err = command("fit", "--config", path)
    assert status == 0, err
    status, _, err = command("fit", "--config", path, "--ckpt_path", "last", "--data.source.size", "16")
    expected = "data.source.init_args.size is 16, but the checkpoint's run has 8"
    assert expected in get_error_sentence(status, err)
