"""Options of one class in a list of the config, such as ``--trainer.callbacks.EMA.decay 0.999``.

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
from lightning_ddpm.data import Augmentation
from lightning_ddpm.networks.conditions import ConditionEmbedding
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.yaml_text import build_parser, load_yaml

KINDS: dict[str, type] = {
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
    "model.augmentations": Augmentation,
    "model.network.conditions": ConditionEmbedding,
}
"""The lists by their options, and what is in them."""
NAMES = "|".join(map(re.escape, KINDS))


def as_list(given: Any) -> list[Any]:
    """Return an option of Lightning's Trainer that may be absent, one thing, or a list, as a list."""
    if isinstance(given, list):
        return given
    return [given] if given else []


OPTION = re.compile(rf"--({NAMES})\.([A-Z]\w*|\d+)\.([^=]+)(?:=(.*))?", re.DOTALL)
MEMBER = re.compile(rf"--(?:{NAMES})\.([A-Z]\w*|\d+)", re.DOTALL)
APPEND = re.compile(rf"(?:.* )?--({NAMES})\+[ =]([\w.]+)$")


class ListOption(NamedTuple):
    """An option of a class in a list.

    Attributes:
        name: the list, as in ``trainer.callbacks``.
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
            others.append(f"--{name}.{rest}={value}")
    return others, found


def set_list_options(config: Namespace, options: Sequence[ListOption], command: str) -> None:
    """Set the options in the configuration, as it was parsed.

    Raises:
        UserError: no class of the list is meant, or several are, or the option is wrong.
    """
    for each in options:
        key = _get_key(each.name)
        value = config.get(key)
        members = value if isinstance(value, list) else [value] if isinstance(value, Namespace) else []
        index = _find_member(members, each)
        place = f"{each.name}.{each.member}"
        parser = build_parser()
        parser.add_subclass_arguments(KINDS[each.name], place, required=False)
        spec = load_yaml(parser.dump(Namespace({place: members[index]})))  # type: ignore[no-untyped-call]
        for part in place.split("."):
            spec = spec[part]
        arguments = [f"--{place}={json.dumps(spec)}", f"--{place}.{each.rest}={each.value}"]
        parsed = parse(parser, arguments, command)[place]
        if isinstance(value, list):
            value[index] = parsed
        else:
            config[key] = parsed


def _get_key(name: str) -> str:
    """Return where a list stands in the configuration: what is given to a class is in its ``init_args``."""
    owner, *rest = name.split(".")
    return name if owner == "trainer" else ".init_args.".join([owner, *rest])


def _find_member(members: Sequence[Any], option: ListOption) -> int:
    names = [each.class_path.rpartition(".")[2] for each in members]
    where = f"--{option.name}.{option.member}.{option.rest}"
    listed = ", ".join(f"{index} ({name})" for index, name in enumerate(names)) or "nothing"
    if option.member.isdecimal():
        if int(option.member) < len(names):
            return int(option.member)
        raise UserError(f"{where}: {option.name} has no place {option.member}; it holds {listed}")
    found = [index for index, name in enumerate(names) if name == option.member]
    if not found:
        fix = suggest(option.member, names)
        raise UserError(f"{where}: {option.name} holds no {option.member}, but {listed}{fix}")
    if len(found) > 1:
        fix = " or ".join(f"--{option.name}.{index}.{option.rest}" for index in found)
        raise UserError(f"{where}: {option.name} holds {len(found)} of {option.member}; give one's place, {fix}")
    return found[0]
