"""Find the first wrong option of a command line, and describe it in a sentence.

Where a value may have several types, jsonargparse reports how each of them failed. After it has failed,
:class:`OptionChecker` reads the options again in their order, against the same parser and the signatures of the classes
that they name.
"""

from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from lightning_ddpm.commands import class_names
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import read_utf8
from lightning_ddpm.utils.jsonargparse_internals import Option, list_options
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.shipped import CONFIGS
from lightning_ddpm.utils.yaml_text import build_parser, load_yaml

SPEC = ("class_path", "init_args", "dict_kwargs")
"""The keys of a class in a config."""


class Place(NamedTuple):
    """Where a value is given.

    Attributes:
        path: the option's name, or the keys in the file.
        file: the config, or ``None`` for the command line.
    """

    path: str
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.path} in {self.file}" if self.file else f"--{self.path}"

    def inside(self, key: str) -> "Place":
        """Return the place of a parameter of the class that stands here."""
        return self._replace(path=f"{self.path}.init_args.{key}" if self.file else f"{self.path}.{key}")

    def word(self) -> str:
        """Return what stands here, in the singular."""
        *_, last = (each for each in self.path.split(".") if not each.isdigit() and each != "class_path")
        return last.removesuffix("s").replace("_", " ")


class OptionChecker:
    """Finds the first mistake of a command line.

    Args:
        parser: the command's.
        command: its name.
    """

    def __init__(self, parser: ArgumentParser, command: str) -> None:
        self.command = command
        self.options = {option.name: option for option in list_options(parser)}
        self.spellings = {name: option for option in self.options.values() for name in option.spellings}
        self.given: dict[str, Any] = {}  # what the options say so far, by the option's name

    def check(self, arguments: Sequence[str]) -> None:
        """Raise :class:`UserError` for the first mistake, if there is one that this class knows."""
        for name, values in self._split(arguments):
            option = self.spellings.get(name.removesuffix("+"))
            place = Place(name.removesuffix("+"))
            if option is None:
                self._check_nested(place, values)
            elif option.is_config or self._is_group(option.name):
                for value in values:
                    prefix = "" if option.is_config else f"{option.name}."
                    self._check_mapping(self._read(value), prefix, Place("", Path(value)))
            elif option.nargs != 0:
                self._check_option(option, place, values, append=name.endswith("+"))
        for option in self.options.values():
            if option.required and not self._is_group(option.name) and option.name not in self.given:
                raise UserError(
                    f"{self.command} needs --{option.spellings[0]}; {self.command} --help lists the options"
                )
        for name, value in self.given.items():
            self._check_required(self.options[name].annotation, Place(name), value)

    def _split(self, arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield each option's name and its values."""
        name, values = "", list[str]()
        for word in arguments:
            if word.startswith("-") and not word[1:2].isdigit() and word != "-":
                if name:
                    yield name, values
                name, _, value = word.lstrip("-").partition("=")
                values = [value] if "=" in word else []
            elif not name:
                raise UserError(f"{self.command} takes no argument {word!r}; {self.command} --help lists the options")
            else:
                values.append(word)
        if name:
            yield name, values

    def _is_group(self, name: str) -> bool:
        return any(other.startswith(f"{name}.") for other in self.options)

    def _read(self, name: str) -> dict[str, Any]:
        path = resolve_path(name)
        if not path.exists():
            raise UserError(f"there is no file {name}{CONFIGS.suggest(name)}")
        try:
            config = load_yaml(read_utf8(path), name)
        except yaml.YAMLError as error:
            raise UserError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(config, dict):
            raise UserError(f"{name} holds no options: it must be a mapping, got {config!r}")
        return config

    def _refuse_name(self, place: Place, known: Sequence[str], owner: str = "") -> None:
        """Raise the error for a name that is none of the known ones, which are paths like its own."""
        how = f"{self.command} --help lists the options"
        if owner:
            how = f"{owner.rpartition('.')[2]} has {', '.join(sorted(each.rpartition('.')[2] for each in known))}"
        if place.file or owner:
            path, _, last = place.path.rpartition(".")
            siblings = [each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == path]
            fix = class_names.suggest(last, siblings, "" if place.file else f"--{path}.")
        else:
            fix = class_names.suggest(place.path, known, "--")
        raise UserError(f"there is no option {place}{fix or ';'} {how}")

    def _check_mapping(self, config: dict[str, Any], prefix: str, place: Place) -> None:
        for key, value in config.items():
            name = f"{prefix}{key}"
            here = place._replace(path=name)
            if self._is_group(name) and isinstance(value, dict):
                self._check_mapping(value, f"{name}.", here)
            elif name in self.options:
                option = self.options[name]
                self._check_option(option, here, value if option.nargs is None or value is None else [*value])
            elif not self._is_group(name):
                known = [*self.options, *(each.rpartition(".")[0] for each in self.options if "." in each)]
                self._refuse_name(here, known)

    def _check_option(self, option: Option, place: Place, value: Any, append: bool = False) -> None:
        before = self.given.get(option.name)
        if not place.file and option.nargs in (None, "?"):
            if not value and option.nargs is None:
                raise UserError(f"{place} needs a value, {class_names.describe_type(option.annotation)}")
            if len(value) > 1:
                raise UserError(f"{place} takes one value, got {', '.join(value)}")
            value = value[0] if value else None
        several = option.nargs not in (None, "?")
        annotation = class_names.get_element_type(option.annotation) if append else option.annotation
        for each in value if several else [value]:
            self._check_value(annotation, place, each, None if append else before)
        if append:
            self.given[option.name] = [*(before or []), _as_spec(annotation, value)]
        else:
            self.given[option.name] = _merge(before, value if several else _as_spec(annotation, value))

    def _check_nested(self, place: Place, values: list[str]) -> None:
        """Check an option of a class that another option names, as in ``--model.network.width``."""
        keys = place.path.split(".")
        for end in range(len(keys) - 1, 0, -1):
            option = self.spellings.get(".".join(keys[:end]))
            if option and not self._is_group(option.name) and option.annotation:
                if keys[-1] != "help":
                    spec = self.given.setdefault(option.name, {})
                    self._check_keys(option.annotation, spec, keys[:end], keys[end:], values[0] if values else None)
                return
        firsts = {each.split(".")[0] for each in self.spellings} - {keys[0]}
        self._refuse_name(place, [*self.spellings, *(".".join([first, *keys[1:]]) for first in firsts)])

    def _check_keys(self, annotation: Any, spec: Any, path: list[str], keys: list[str], value: Any) -> None:
        if isinstance(spec, list):  # of the class that was appended last
            spec, annotation = spec[-1] if spec else {}, class_names.get_element_type(annotation)
        if not isinstance(spec, dict) or keys[0] == "dict_kwargs":
            return
        keys = keys[keys[0] == "init_args" :]
        place = Place(".".join([*path, *keys]))
        if keys[0] == "class_path":
            self._check_value(annotation, place, value, spec)
            spec.update(_merge(spec, {"class_path": value}))
            return
        parameters = self._list_parameters(annotation, spec, Place(".".join(path)))
        if parameters is None:
            return
        if keys[0] not in parameters:
            self._refuse_name(place, [".".join([*path, each]) for each in parameters], spec["class_path"])
        parameter, arguments = parameters[keys[0]].annotation, spec.setdefault("init_args", {})
        if len(keys) > 1:
            self._check_keys(parameter, arguments.setdefault(keys[0], {}), [*path, keys[0]], keys[1:], value)
        else:
            self._check_value(parameter, place, value, arguments.get(keys[0]))
            arguments[keys[0]] = _merge(arguments.get(keys[0]), _as_spec(parameter, value))

    def _list_parameters(self, annotation: Any, spec: dict[str, Any], place: Place) -> dict[str, Option] | None:
        """Return the parameters of the class that a spec names; ``None`` where it names none."""
        kinds, given_by_code = class_names.find_kinds(annotation)
        name = spec.get("class_path")
        if not kinds or not isinstance(name, str):
            return None
        where = f" ({place})" if place.file else ""
        kind = class_names.find_class(name, kinds, place.word(), where)
        return None if kind is None else class_names.list_parameters(kind, given_by_code)

    def _check_value(self, annotation: Any, place: Place, value: Any, before: Any) -> None:
        if _accepts(annotation, value):
            return
        element = class_names.get_element_type(annotation)
        if isinstance(value, list) and element is not None:
            for index, each in enumerate(value):
                self._check_value(element, place._replace(path=f"{place.path}.{index}"), each, None)
        elif class_names.find_kinds(annotation)[0] and isinstance(value, dict | str):
            self._check_spec(annotation, place, value, before)
        else:
            raise UserError(f"{place} expects {class_names.describe_type(annotation)}, got {value!r}")

    def _check_spec(self, annotation: Any, place: Place, value: Any, before: Any) -> None:
        spec = _as_spec(annotation, value)
        for key in spec:
            if key not in SPEC:
                self._refuse_name(place._replace(path=f"{place.path}.{key}"), [f"{place.path}.{each}" for each in SPEC])
        merged = _merge(before, spec) if isinstance(before, dict) else spec
        parameters = self._list_parameters(annotation, merged, place)
        if parameters is None:
            return
        for key, each in (spec.get("init_args") or {}).items():
            if key not in parameters:
                self._refuse_name(place.inside(key), [place.inside(o).path for o in parameters], merged["class_path"])
            old = (merged.get("init_args") or {}).get(key)
            self._check_value(parameters[key].annotation, place.inside(key), each, old)

    def _check_required(self, annotation: Any, place: Place, value: Any) -> None:
        if isinstance(value, list):
            for index, each in enumerate(value):
                element = class_names.get_element_type(annotation)
                self._check_required(element, place._replace(path=f"{place.path}.{index}"), each)
        if not isinstance(value, dict):
            return
        parameters = self._list_parameters(annotation, value, place) or {}
        arguments = value.get("init_args") or {}
        for name, parameter in parameters.items():
            if parameter.required and name not in arguments:
                path, _, last = place.path.rpartition(".")
                needed, path = place.inside(name), path if last.isdigit() else place.path
                if last.isdigit() and not place.file:  # an element of a list goes by the name of its class
                    needed = Place(f"{path}.{value['class_path'].rpartition('.')[2]}.{name}")
                how = f"; {self.command} --{path}.help NAME lists its options"
                raise UserError(f"the {place.word()} {value['class_path']} needs {needed}{how}")
            self._check_required(parameter.annotation, place.inside(name), arguments.get(name))


def _accepts(annotation: Any, value: Any) -> bool:
    """Return whether a value is of a type, as jsonargparse sees it."""
    if annotation is None:
        return True
    parser = build_parser()
    parser.add_argument("--value", type=annotation)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _as_spec(annotation: Any, value: Any) -> Any:
    """Return a class that is given by its name alone, or by a mapping as text, as a mapping."""
    is_text = str in class_names.split_annotation(annotation)
    if not isinstance(value, str) or is_text or not class_names.find_kinds(annotation)[0]:
        return value
    if value.lstrip().startswith("{"):
        with suppress(yaml.YAMLError):
            return load_yaml(value)
    return {"class_path": value}


def _merge(before: Any, value: Any) -> Any:
    """Return a value over an earlier one; the arguments of another class are dropped."""
    if not isinstance(before, dict) or not isinstance(value, dict):
        return value
    if value.get("class_path", before.get("class_path")) != before.get("class_path"):
        return value
    return before | {key: _merge(before.get(key), each) for key, each in value.items()}
