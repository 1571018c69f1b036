"""Every string survives YAML: ours, and that of jsonargparse."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import yaml

from lightning_ddpm.utils.jsonargparse_internals import keep_nested_text
from lightning_ddpm.utils.yaml_text import build_parser, dump_yaml, load_yaml

STRINGS = (
    *("1e3", "1E3", "1e-3", "1_000", "1_0e3", "+1", "-0", "007", "0x1F", "0b1", "0o7", "190:20:30", "12:30", "1."),
    *(".5", "2024-01-01", "2024-01-01 10:00:00", "null", "Null", "~", "", "yes", "No", "on", "true", "FALSE", "y"),
    *("n", "=", ".inf", "-.INF", ".nan", "inf", "nan", "infinity", " a ", "a: b", "a :b", "#x", "a #x", "- x", "? x"),
    *("?", "-", "---", "[x]", "{a: b}", "{", "]", "'q'", '"q"', "it's", "\\", "*x", "&x", "!x", "%x", "@x", "`x`"),
    *("|", ">", "<<", "a,b", "a\nb", "a\n", "\ta", "\x1b[31m", "\u2028", "\u00e9", "..", "...", "1e3 # x", "._"),
)


class Holder:
    def __init__(
        self,
        text: str = "default",
        maybe: str | None = None,
        several: Sequence[str] = (),
        by_name: dict[str, str] | None = None,
    ) -> None:
        """A class with strings of every kind."""


def spec(**arguments: Any) -> dict[str, Any]:
    return {"holder": {"class_path": f"{__name__}.Holder", "init_args": arguments}}


@pytest.fixture(scope="module")
def parser():
    built = build_parser()
    built.add_subclass_arguments(Holder, "holder")
    built.add_argument("--plain", type=str)
    return built


@pytest.mark.parametrize("reader", [load_yaml, yaml.safe_load])
def test_every_reader_of_yaml_finds_the_strings_that_were_written(reader) -> None:
    data = {"list": list(STRINGS), "keys": {text: text for text in STRINGS}, "number": 1e-05, "nothing": None}
    assert reader(dump_yaml(data)) == data


def test_no_combination_of_the_characters_of_numbers_is_written_as_a_number() -> None:
    texts = ["".join(each) for n in range(1, 6) for each in product("1_.e-:", repeat=n)]
    assert load_yaml(dump_yaml(texts)) == texts


def test_strings_without_another_meaning_are_written_without_quotes() -> None:
    assert dump_yaml({"root": "data/images", "name": "cat"}) == "root: data/images\nname: cat\n"


@pytest.mark.parametrize("text", STRINGS)
def test_a_string_survives_every_way_through_jsonargparse(text, parser) -> None:
    arguments = {"text": text, "maybe": text, "several": [text], "by_name": {"key": text}}
    if text == "null":
        del arguments["maybe"]  # where there may be nothing, null is nothing
    parsed = parser.parse_object(spec(**arguments))
    again = parser.parse_string(parser.dump(parsed))
    for found in (parsed.holder.init_args, again.holder.init_args):
        assert {name: found[name] for name in arguments} == arguments


@pytest.mark.parametrize("text", STRINGS)
def test_a_string_survives_the_command_line(text, parser) -> None:
    assert parser.parse_args([f"--plain={text}"]).plain == text
    if not text.startswith(("[", "{")):  # a list, even where a class expects a string
        with keep_nested_text():
            found = parser.parse_args(["--holder", "Holder", f"--holder.text={text}"])
        assert found.holder.init_args.text == text
