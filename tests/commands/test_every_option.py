"""Every value of every config can be set on the command line."""

import json
import os
from typing import Any

import pytest
from helpers.command_line import CONFIGS, REPOSITORY
from helpers.command_outputs import get_error_sentence

from lightning_ddpm.commands import fit
from lightning_ddpm.utils.yaml_text import load_yaml


class ParsedError(Exception):
    """Ends the command when its options have been parsed."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function that parses fit's options as the command line does, and returns the config as plain data."""
    configs = []

    class Parsed(fit.DDPMCLI):
        def before_instantiate_classes(self):
            configs.append(self._dump_complete_config())
            raise ParsedError

    monkeypatch.setattr(fit, "DDPMCLI", Parsed)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def call(*options: str) -> Any:
        with pytest.raises(ParsedError):
            fit.run(["fit", *options])
        return configs[-1]

    return call


def list_values(config: Any, name: str = "") -> Any:
    """Yield the option and the value of each value of a config; classes are left as they are."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key != "class_path":
                yield from list_values(value, name if key == "init_args" else f"{name}.{key}" if name else key)
    elif isinstance(config, list) and any(isinstance(each, dict) for each in config):
        for index, each in enumerate(config):
            yield from list_values(each, f"{name}.{index}")
    else:
        yield name, config


def change(name: str, value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        is_pair = name.endswith((".betas", ".interval"))
        return value[::-1] + ([] if is_pair else value[:1])
    return value / 2 if isinstance(value, float) else value + 1 if isinstance(value, int) else value


def write_options(values: dict[str, Any]) -> list[str]:
    """Return values as options of the command line."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_value_of_a_config_is_changed_by_its_option(path, parse) -> None:
    given = dict(list_values(load_yaml(path.read_text())))
    changed = {name: change(name, value) for name, value in given.items()}
    found = dict(list_values(parse("--config", str(path), *write_options(changed))))
    assert {name: found[name] for name in changed} == changed


def test_every_value_of_a_complete_config_can_be_given_as_an_option(parse) -> None:
    """Defaults, too, of which many are null."""
    path = str(REPOSITORY / "configs" / "digits_conditional.yaml")
    complete = parse("--config", path)
    values = dict(list_values(complete))
    assert sum(value is None for value in values.values()) > 30
    assert values["model.network.classes"] is None
    assert parse("--config", path, *write_options(values)) == complete


DIGITS = ("--config", str(REPOSITORY / "configs" / "digits.yaml"))


def test_a_callback_of_the_list_is_named_by_its_class_or_its_place(parse) -> None:
    options = (
        *(
            "--trainer.callbacks.EMA.decay",
            "0.5",
            "--trainer.callbacks.1.n=77",
            "--trainer.callbacks.1.every_n_steps=null",
        ),
        *("--trainer.callbacks.Evaluation.sampler", "DPMSolverPP", "--trainer.callbacks.1.sampler.steps=7"),
        *("--trainer.callbacks+", "Throughput", "--trainer.callbacks.Checkpoints.monitor", "1e3"),
        *("--trainer.callbacks.1.sampler.spacing", "quadratic_spacing", "--model.sampler.spacing=quadratic_spacing"),
    )
    config = parse(*DIGITS, *options)
    callbacks = config["trainer"]["callbacks"]
    names = ["EMA", "Evaluation", "Memorisation", "SampleGrid", "Checkpoints", "Throughput"]
    assert [each["class_path"].rpartition(".")[2] for each in callbacks] == names
    assert callbacks[0]["init_args"] == {"decay": 0.5}
    evaluation = callbacks[1]["init_args"]
    assert (evaluation["n"], evaluation["every_n_steps"], evaluation["batch_size"]) == (77, None, 128)
    assert evaluation["sampler"]["class_path"] == "lightning_ddpm.diffusion.DPMSolverPP"
    assert evaluation["sampler"]["init_args"]["steps"] == 7
    assert callbacks[4]["init_args"]["monitor"] == "1e3"
    spacing = "lightning_ddpm.diffusion.quadratic_spacing"
    assert evaluation["sampler"]["init_args"]["spacing"] == spacing
    assert config["model"]["init_args"]["sampler"]["init_args"]["spacing"] == spacing


def test_a_logger_of_the_list_is_named_by_its_class(parse) -> None:
    one = (
        "--trainer.logger",
        "CSVLogger",
        "--trainer.logger.save_dir",
        "logs",
        "--trainer.logger.CSVLogger.name",
        "1e3",
    )
    assert parse(*DIGITS, *one)["trainer"]["logger"]["init_args"]["name"] == "1e3"


def test_a_callback_that_is_appended_takes_its_options_by_its_name(parse) -> None:
    append = (
        ("--trainer.callbacks+", "EarlyStopping"),
        ("--trainer.callbacks+=pytorch_lightning.callbacks.EarlyStopping",),
    )
    for words in append:  # its monitor has no default
        options = (
            "--trainer.callbacks.EarlyStopping.monitor",
            "1e3",
            "--trainer.callbacks.EarlyStopping.patience",
            "7",
        )
        added = parse(*DIGITS, *words, *options)["trainer"]["callbacks"][-1]
        assert added["class_path"].endswith("EarlyStopping")
        assert (added["init_args"]["monitor"], added["init_args"]["patience"]) == ("1e3", 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--trainer.callbacks+", "EarlyStopping"),
            "the callback EarlyStopping needs --trainer.callbacks.EarlyStopping.monitor; fit --trainer.callbacks.help",
        ),
        (
            ("--trainer.callbacks.EMAA.decay", "0.5"),
            "--trainer.callbacks.EMAA.decay: trainer.callbacks holds no EMAA, but 0 (EMA), 1 (Evaluation), "
            "2 (Memorisation), 3 (SampleGrid), 4 (Checkpoints); did you mean EMA?",
        ),
        (
            ("--trainer.callbacks+", "EMA", "--trainer.callbacks.EMA.decay", "0.5"),
            "holds 2 of EMA; give one's place, --trainer.callbacks.0.decay or --trainer.callbacks.5.decay",
        ),
        (
            ("--trainer.callbacks.EMA", "9"),
            "--trainer.callbacks.EMA names no option of EMA; give one as --trainer.callbacks.EMA.OPTION VALUE",
        ),
        (
            ("--trainer.logger", "NoLogger"),
            "There are RunLogger, RunTable, CSVLogger, CometLogger",
        ),
        (("--trainer.logger.name", os.fsdecode(b"caf\xe9")), r"caf\xe9 is not UTF-8, and could not be written"),
        (("--trainer.callbacks.7.decay", "0.5"), "trainer.callbacks has no place 7; it holds 0 (EMA), 1 (Evaluation)"),
        (
            ("--trainer.callbacks", "null", "--trainer.callbacks.EMA.decay", "0.5"),
            "trainer.callbacks holds no EMA, but nothing",
        ),
        (("--trainer.callbacks.EMA.deca", "0.5"), "did you mean --trainer.callbacks.EMA.decay? EMA has decay"),
        (("--trainer.callbacks.EMA.decay", "half"), "--trainer.callbacks.EMA.decay expects float, got 'half'"),
        (("--trainer.callbacks.EMA.decay",), "--trainer.callbacks.EMA.decay needs a value"),
        (("--trainer.callbacks.EMA.decay", "--trainer.max_steps", "1"), "--trainer.callbacks.EMA.decay needs a value"),
        (("--trainer.callbacks.1.sampler", "DDI"), "there is no sampler DDI; did you mean DDIM?"),
        (("--model.sampler.spacing", "cubic_spacing"), "--model.sampler.spacing expects an importable function"),
    ],
)
def test_a_wrong_option_of_a_callback_is_refused(options, message, command) -> None:
    status, out, err = command("fit", *DIGITS, *options)
    assert message in get_error_sentence(status, err)
    assert out == ""
