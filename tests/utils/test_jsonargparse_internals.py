"""jsonargparse's private API is as this package uses it; a failure says what a new version has changed."""

from typing import Literal, Union

import jsonargparse
import pytest

from lightning_ddpm.utils.jsonargparse_internals import (
    accept_value,
    list_options,
    prefer_integers,
    restore_parsing_settings,
)


def test_parsing_settings_are_restored() -> None:
    found = getattr(jsonargparse._common, "parsing_settings", None)
    assert isinstance(found, dict), f"jsonargparse {jsonargparse.__version__} keeps its settings elsewhere"
    before = dict(found)
    with restore_parsing_settings():
        jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["torch.nn"])
        assert found != before, f"jsonargparse {jsonargparse.__version__} keeps its lists of imports elsewhere"
    assert found == before


class Parent:
    def __init__(self, size: int, names: list[str] | None = None) -> None:
        """A class whose parameters become options."""


def test_the_options_of_a_parser_are_listed_with_their_types() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--labels", "--label", type=str, nargs=2)
    parser.add_argument("--format", choices=["a", "b"], required=True)
    parser.add_argument("--raw", action="store_true")
    parser.add_class_arguments(Parent, "parent")
    parser.add_subclass_arguments(Parent, "other", required=True)
    found = {option.name: option for option in list_options(parser)}
    changed = f"jsonargparse {jsonargparse.__version__} lists its options elsewhere than in _actions, or differently: "
    assert {"config", "labels", "format", "raw", "parent.size", "parent.names", "other"} <= set(found), changed + str(
        found
    )
    assert "help" not in found, changed + str(found)
    assert found["config"].is_config, changed + "config files are not an ActionConfigFile"
    assert found["labels"].spellings == ("labels", "label"), changed + "spellings"
    assert (found["labels"].nargs, found["raw"].nargs, found["format"].nargs) == (2, 0, None), changed + "nargs"
    assert found["format"].annotation == Literal["a", "b"], changed + "choices"
    assert found["parent.size"].annotation is int, changed + "an action has no _typehint"
    assert found["parent.names"].annotation == list[str] | None, changed + "an action has no _typehint"
    assert found["other"].annotation in (Parent, Parent | None), changed + "an action has no _typehint"
    required = {name for name, option in found.items() if option.required}
    assert {"format", "parent.size", "other"} <= required, changed + "required options, see _extra_required_keys"
    assert not required & {"labels", "raw", "parent.names"}, changed + "required options, see _extra_required_keys"


def test_an_option_takes_one_more_text() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Parent, "parent")
    accept_value(parser, "parent.size", "auto")
    for given, value in (("auto", "auto"), ("3", 3)):
        assert parser.parse_args(["--parent.size", given]).parent.size == value, (
            f"jsonargparse {jsonargparse.__version__} keeps an option's type elsewhere than in _typehint"
        )
    with pytest.raises(jsonargparse.ArgumentError):
        parser.parse_args(["--parent.size", "other"])


def test_an_integer_is_read_as_one_whatever_the_order_of_a_union() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--share", type=Union[float, int, None])  # noqa: UP007
    parser.add_argument("--other", type=Union[float, str])  # noqa: UP007
    assert isinstance(parser.parse_args(["--share", "1"]).share, float), "typing or jsonargparse sorts unions"
    prefer_integers(parser)
    found = [parser.parse_args(["--share", text]).share for text in ("1", "1.0", "null")]
    assert found == [1, 1.0, None]
    assert [type(each) for each in found[:2]] == [int, float]
    assert isinstance(parser.parse_args(["--other", "1"]).other, float)
