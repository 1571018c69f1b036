"""Wrong options: the first one is named in the first line, with the nearest right one, and without a usage dump."""

import pytest
from helpers.command_line import REPOSITORY, callback, ddpm, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence
from jsonargparse import ArgumentParser

from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.utils.errors import UserError

DIGITS = ("fit", "--config", REPOSITORY / "configs" / "digits.yaml")
SAMPLE = ("sample", "--ckpt", "none.ckpt", "--out", "none")
SAMPLERS = "There are AdaptiveODE, Ancestral, DDIM, DPMSolverPP, "


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((*SAMPLE, "--sampler", "DDIMM"), f"there is no sampler DDIMM; did you mean DDIM? {SAMPLERS}"),
        (
            (*SAMPLE, "--sampler", "DDIM", "--sampler.stepz", "10"),
            "there is no option --sampler.stepz; did you mean --sampler.steps? DDIM has eta, spacing, steps",
        ),
        (
            (*SAMPLE, "--sampler", "DDIM", "--sampler.init_args.stepz", "10"),
            "there is no option --sampler.stepz; did you mean --sampler.steps? DDIM has eta, spacing, steps",
        ),
        (
            (*DIGITS, "--trainer.max_step", "3"),
            "there is no option --trainer.max_step; did you mean --trainer.max_steps? fit --help lists the options",
        ),
        (
            (*DIGITS, "--trianer.max_steps", "3"),
            "there is no option --trianer.max_steps; did you mean --trainer.max_steps? fit --help lists the options",
        ),
        ((*DIGITS, "--trainer.max_steps", "three"), "--trainer.max_steps expects int, got 'three'"),
        ((*DIGITS, "--model.sampler", "DDIMM"), f"there is no sampler DDIMM; did you mean DDIM? {SAMPLERS}"),
        ((*DIGITS, "--model.sampler.class_path", "Hein"), f"there is no sampler Hein; did you mean Heun? {SAMPLERS}"),
        (
            (*DIGITS, "--model.optimizer.lrr", "1"),
            "there is no option --model.optimizer.lrr; did you mean --model.optimizer.lr? Adam has amsgrad, betas,",
        ),
        ((*DIGITS, "--model.network.width", "wide"), "--model.network.width expects int, got 'wide'"),
        ((*DIGITS, "--model.sampler", "Ancestral"), "the sampler Ancestral needs --model.sampler.variance; "),
        ((*DIGITS, "--trainer.callbacks+", "EMMA"), "there is no callback EMMA; did you mean EMA? There are BitsPer"),
        (
            (*DIGITS, "--model.network", "lightning_ddpm.network.UNet"),
            "there is no network lightning_ddpm.network.UNet; did you mean lightning_ddpm.networks.UNet?",
        ),
        ((*DIGITS, "--model.network", "nowhere.Net"), "there is no network nowhere.Net; there is no module nowhere in"),
        ((*DIGITS, "--model.sampler", "lightning_ddpm.networks.UNet"), "lightning_ddpm.networks.UNet is no Sampler; "),
        (("fit", "--config", "nothing.yaml"), "there is no file nothing.yaml"),
        (("sample", "--out", "none"), "sample needs --ckpt; sample --help lists the options"),
        ((*SAMPLE, "--n", "five"), "--n expects int, got 'five'"),
        ((*SAMPLE, "--n"), "--n needs a value, int"),
        ((*SAMPLE, "more"), "--out takes one value, got none, more"),
        (("sample", "more"), "sample takes no argument 'more'; sample --help lists the options"),
        (
            ("evaluate", "--protocols", "TF1", "TFF"),
            "there is no protocol TFF; did you mean TF1? There are Antialiased",
        ),
        (
            ("check-data", "--data.rot", "x"),
            "there is no option --data.rot; did you mean --data.root? check-data --help",
        ),
        (("export", "--format", "diffuser"), "--format expects diffusers or release, got 'diffuser'"),
        (("import", "--foldr", "x"), "there is no option --foldr; did you mean --folder? import --help lists the opt"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_the_whole_error(arguments, error, command):
    status, out, err = command(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


def change_network(config):
    config["model"]["init_args"]["network"]["init_args"]["widht"] = 8


def change_schedule(config):
    config["model"]["init_args"]["schedule"]["init_arg"] = {}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            change_network,
            "there is no option model.init_args.network.init_args.widht in FILE; did you mean width? UNet has attent",
        ),
        (
            change_schedule,
            "there is no option model.init_args.schedule.init_arg in FILE; did you mean init_args?",
        ),
        (
            lambda config: config["data"].update(bacth_size=2),
            "there is no option data.bacth_size in FILE; did you mean batch_size? fit --help lists the options",
        ),
        (
            lambda config: config.update(trianer={"max_steps": 3}),
            "there is no option trianer in FILE; did you mean trainer?",
        ),
        (
            lambda config: callback(config, "EMA").update(decy=0.5),
            "there is no option trainer.callbacks.0.init_args.decy in FILE; did you mean decay? EMA has ",
        ),
        (
            lambda config: config["trainer"]["callbacks"][0].update(class_path="lightning_ddpm.callbacks.EMMA"),
            "there is no callback lightning_ddpm.callbacks.EMMA (trainer.callbacks.0 in FILE); did you mean "
            "lightning_ddpm.callbacks.EMA?",
        ),
        (lambda config: config["data"].update(batch_size="b"), "data.batch_size in FILE expects int, got 'b'"),
        (
            lambda config: config["model"]["init_args"]["sampler"]["init_args"].update(steps=[1]),
            "model.init_args.sampler.init_args.steps in FILE expects int or null, got [1]",
        ),
    ],
    ids=["key", "spec", "group", "root", "list", "class", "value", "nested"],
)
def test_a_wrong_key_of_a_config_is_named_with_its_file(change, error, command, tmp_path):
    config = tiny_digits(tmp_path / "run")
    change(config)
    file = write_yaml(tmp_path / "config.yaml", config)
    status, _, err = command("fit", "--config", file)
    assert status == 2
    assert err.startswith(f"error: {error.replace('FILE', str(file))}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["- 1", "a: [", "text"])
def test_a_config_that_is_no_mapping_is_named(text, command, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    status, _, err = command("fit", "--config", tmp_path / "config.yaml")
    assert status == 2
    assert err.startswith(f"error: {tmp_path / 'config.yaml'} ")
    assert err.count("\n") == 1


def test_an_abbreviated_option_is_not_accepted():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--number", type=int)
    assert parse(parser, ["--number", "3"], "count").number == 3
    with pytest.raises(UserError, match="there is no option --numb; did you mean --number"):
        parse(parser, ["--numb", "3"], "count")


OWN_NETWORK = """
import torch
from lightning_ddpm.utils.errors import UserError

class Net(torch.nn.Module):
    def __init__(self, width: int, channels: int | None = None, size: int | None = None) -> None:
        super().__init__()
        if width == 2:
            raise UserError("width must be odd, got 2; use 3")
        self.channels, self.size = channels, size
        self.layer = torch.nn.Conv2d(channels, channels, "wide" if width == 5 else 3, padding=1)
        self.layer.width = width + ("" if width == 7 else 0)

    def forward(self, x_t, t):
        return self.layer(x_t)
"""


@pytest.fixture
def fit_own_network(tmp_path):
    """Runs ``fit`` with a network of the user's in a process: (exit status, lines of stderr, its file)."""
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)

    def fit(width):
        config = tiny_digits(tmp_path / "run")
        arguments = {} if width is None else {"width": width}
        config["model"]["init_args"]["network"] = {"class_path": "own_network.Net", "init_args": arguments}
        ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), PYTHONPATH=tmp_path)
        lines = ended.stderr.splitlines()
        assert not (tmp_path / "run" / "last.ckpt").exists()
        return ended.returncode, lines, tmp_path / "own_network.py"

    return fit


def test_a_user_error_of_the_users_own_class_is_the_whole_error(fit_own_network):
    status, lines, _ = fit_own_network(2)
    assert (status, lines) == (2, ["error: width must be odd, got 2; use 3"])


def test_a_missing_argument_of_the_users_own_class_is_named(fit_own_network):
    status, lines, _ = fit_own_network(None)
    assert status == 2
    assert lines[0].startswith("error: the network own_network.Net needs --model.network.width; ")


@pytest.mark.parametrize(("width", "line", "kind"), [(7, 12, "TypeError"), (5, 11, "TypeError")])
def test_an_exception_of_the_users_own_class_shows_the_users_line_first(width, line, kind, fit_own_network):
    status, lines, file = fit_own_network(width)
    assert status == 1
    assert lines[0].startswith(f"error: {file}:{line}: {kind}: ")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1].startswith(f"{kind}: ")
    assert sum(each.startswith("Traceback") for each in lines) == 1


def test_an_exception_in_a_module_of_the_users_shows_the_users_line_first(command, capsys, monkeypatch, tmp_path):
    (tmp_path / "own_broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        command(*DIGITS, "--model.network", "own_broken.Net")
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'own_broken.py'}:1: ModuleNotFoundError: ")


def test_an_error_from_a_process_is_a_sentence_and_a_status(tmp_path):
    options = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.max_stepps", "4")
    ended = ddpm("fit", "--config", "configs/digits.yaml", *options)
    assert ended.returncode == 2
    assert "max_stepps; did you mean --trainer.max_steps?" in get_error_sentence(ended.returncode, ended.stderr)
    assert not (tmp_path / "run").exists()
