"""Read and write YAML so that every string stays a string, in our own files and in jsonargparse's.

PyYAML writes ``1e3`` without quotes, because YAML 1.1 reads it as a string; jsonargparse reads it as a number. A text
that is a value alone, as on the command line, is YAML only if it is written as such: a folder ``#x`` is no comment.
"""

import re
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_dumper, set_loader

from lightning_ddpm.utils.jsonargparse_internals import HelpFormatter
from lightning_ddpm.utils.text_files import check_yaml

MODE = "lightning_ddpm"
"""The name of this format in jsonargparse, as the ``parser_mode`` of a parser."""
NUMBER = re.compile(r"[-+.0-9][-+.0-9_:eE]*")
"""Texts that one of the readers could take for a number."""


def build_parser(command: str | None = None, description: str | None = None) -> ArgumentParser:
    """Return a parser that reads and writes this format and raises its errors; it has no options yet."""
    return ArgumentParser(
        command and f"lightning-ddpm {command}",
        description=description,
        exit_on_error=False,
        parser_mode=MODE,
        formatter_class=HelpFormatter,
    )


def load_yaml(text: str, name: str = "a value in YAML") -> Any:
    """Return what a YAML document holds, as plain data; dates are strings.

    Raises:
        yaml.YAMLError: it is no YAML.
        UserError: it is too long or too deep, or its aliases repeat too much.
    """
    check_yaml(text, name)
    try:
        return get_loader("yaml")(text)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:  # the reader's, for ``?`` and ``._``
        raise yaml.YAMLError(f"it cannot be read: {error}") from error


def dump_yaml(data: Any) -> str:
    """Return plain data as a YAML document, in which every string that could be read as something else has quotes."""
    text: str = yaml.dump(data, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    pass


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if NUMBER.fullmatch(text) else None)


def _load(text: str, path: Any = None) -> Any:
    """Return what a document holds, or for a value alone (without a path) the text itself if it is no YAML of ours."""
    loaded = load_yaml(text, str(path or "a value in YAML"))
    if path is not None or (loaded is not None and not isinstance(loaded, dict | list)):
        return loaded
    return loaded if "\n" in text or text.lstrip().startswith(("[", "{")) else text


_Dumper.add_representer(str, _represent_text)
set_loader(MODE, _load, (yaml.YAMLError,))
set_dumper(MODE, dump_yaml)
