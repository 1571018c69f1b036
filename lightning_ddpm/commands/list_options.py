"""Options of one class in a list of the Trainer's, such as ``--trainer.callbacks.EMA.decay 0.999``.

jsonargparse sets options of the last class of a list alone. The others are therefore taken out of the command line, and
set once the list is known.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jsonargparse import Namespace
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger

from lightning_ddpm.commands.class_names import suggest
from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.yaml_text import build_parser, load_yaml

KINDS: dict[str, type] = {"callbacks": Callback, "logger": Logger}
"""The lists of the Trainer's, and what is in them."""
OPTION = re.compile(rf"--trainer\.({'|'.join(KINDS)})\.([A-Z]\w*|\d+)\.([^=]+)(?:=(.*))?", re.DOTALL)
MEMBER = re.compile(rf"--trainer\.(?:{'|'.join(KINDS)})\.([A-Z]\w*|\d+)", re.DOTALL)
APPEND = re.compile(rf"(?:.* )?--trainer\.({'|'.join(KINDS)})\+[ =]([\w.]+)$")


class ListOption(NamedTuple):
    """An option of a class in a list.

    Attributes:
        name: the list, as in ``callbacks``.
        member: the class by its name, or by its position in the list, from 0.
        rest: the name of the option in the class.
        value: what the command line gives for it.
    """

    name: str
    member: str
    rest: str
    value: str


def split_list_options(arguments: Sequence[str]) -> tuple[list[str], list[ListOption]]:
    """Return the command line without the options of classes in lists, and these.

    Raises:
        UserError: one of them has no value.
    """
    others, found, appended = list[str](), list[ListOption](), dict[str, str]()
    words = iter(arguments)
    for word in words:
        if append := APPEND.match(" ".join([*others[-1:], word])):
            appended[append[1]] = append[2].rpartition(".")[2]
        match = OPTION.fullmatch(word)
        if alone := MEMBER.fullmatch(word):
            raise UserError(f"{alone[0]} names no option of {alone[1]}; give one as {alone[0]}.OPTION VALUE")
        if match is None:
            others.append(word)
            continue
        name, member, rest, value = match.groups()
        value = next(words, None) if value is None else value
        if value is None or value.startswith("--"):
            raise UserError(f"{word} needs a value; fit --help lists the options")
        found.append(ListOption(name, member, rest, value))
        if appended.get(name) == member:  # the class may need the option to be parsed at all
            others.append(f"--trainer.{name}.{rest}={value}")
    return others, found


def set_list_options(trainer: Namespace, options: Sequence[ListOption], command: str) -> None:
    """Set the options in the configuration of the Trainer, as it was parsed.

    Raises:
        UserError: no class of the list is meant, or several are, or the option is wrong.
    """
    for each in options:
        value = trainer[each.name]
        members = value if isinstance(value, list) else [value] if isinstance(value, Namespace) else []
        index = _find_member(members, each)
        place = f"trainer.{each.name}.{each.member}"
        parser = build_parser()
        parser.add_subclass_arguments(KINDS[each.name], place, required=False)
        spec = load_yaml(parser.dump(Namespace({place: members[index]})))  # type: ignore[no-untyped-call]
        for key in place.split("."):
            spec = spec[key]
        arguments = [f"--{place}={json.dumps(spec)}", f"--{place}.{each.rest}={each.value}"]
        parsed = parse(parser, arguments, command)[place]
        if isinstance(value, list):
            value[index] = parsed
        else:
            trainer[each.name] = parsed


def _find_member(members: Sequence[Any], option: ListOption) -> int:
    names = [each.class_path.rpartition(".")[2] for each in members]
    where = f"--trainer.{option.name}.{option.member}.{option.rest}"
    listed = ", ".join(f"{index} ({name})" for index, name in enumerate(names)) or "nothing"
    if option.member.isdecimal():
        if int(option.member) < len(names):
            return int(option.member)
        raise UserError(f"{where}: trainer.{option.name} has no place {option.member}; it holds {listed}")
    found = [index for index, name in enumerate(names) if name == option.member]
    if not found:
        fix = suggest(option.member, names)
        raise UserError(f"{where}: trainer.{option.name} holds no {option.member}, but {listed}{fix}")
    if len(found) > 1:
        fix = " or ".join(f"--trainer.{option.name}.{index}.{option.rest}" for index in found)
        raise UserError(
            f"{where}: trainer.{option.name} holds {len(found)} of {option.member}; give one's place, {fix}"
        )
    return found[0]
