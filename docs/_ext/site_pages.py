"""What the site builds from the package itself: the API, the commands' options, the configs; short cross-references.

A page asks for one of them by a line ``<!-- api ROOM: MODULES -->``, ``<!-- commands -->`` or ``<!-- configs -->``.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

from lightning_ddpm.commands.main import COMMANDS, TRAINER, USAGE, main

ROOT = Path(__file__).parent.parent.parent
WIDTH = 84
"""Characters of a command that fit on a line of the site."""


def describe_commands() -> str:
    """Return the page of all commands in Markdown, with what ``COMMAND --help`` prints."""
    parts = [f"```text\n{USAGE}\n```"]
    for command in COMMANDS:
        output = io.StringIO()
        with (
            patch.dict(os.environ, {"COLUMNS": "96", "NO_COLOR": "1", "PYTHON_COLORS": "0"}),
            contextlib.redirect_stdout(output),
            contextlib.suppress(SystemExit),
        ):
            main([command, "--help"])
        text = re.sub(r"[^\S\n ]|[\x00-\x08]", "", output.getvalue()).replace(str(Path.home()), "~").rstrip()
        _, _, text = text.partition("\n\n")  # without the usage
        listing = f"```text\n{text}\n```"
        if command in {*TRAINER, "plan"} - {"fit"}:
            listing = (
                f"<details><summary>The options, which are nearly those of fit</summary>\n\n{listing}\n\n</details>"
            )
        parts.append(f"## {command}\n\n{listing}")
    return "\n\n".join(parts)


def describe_configs() -> str:
    """Return the page of all configs in Markdown: a table of what each trains, then each in full."""
    rows, parts = ["| config | what it trains |", "|---|---|"], []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        first = text.splitlines()[0].removeprefix("# ")
        rows.append(f"| [{path.name}](#{path.name.replace('.', '-').replace('_', '-')}) | {first} |")
        label = path.name.replace(".", "-").replace("_", "-")
        parts.append(f"({label})=\n## {path.name}\n\n```yaml\n{text.rstrip()}\n```")
    return "\n".join(rows) + "\n\n" + "\n\n".join(parts)


def describe_room(room: str, order: str = "") -> str:
    """Return the API of all modules in a folder of the package, in Markdown: those named come first, in that order."""
    folder = ROOT / "lightning_ddpm" / room.replace(".", "/")
    there = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    first = order.split()
    if missing := set(first) - there:
        raise ValueError(f"there is no module {min(missing)} in {folder}")
    parts = []
    for name in [*first, *sorted(there - set(first))]:
        module = f"lightning_ddpm.{room}.{name}"
        parts.append(f"({module})=\n## {room}.{name}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```")
    return "\n\n".join(parts)


DESCRIBE = {"api": describe_room, "commands": describe_commands, "configs": describe_configs}


def wrap_commands(block: re.Match[str]) -> str:
    """Return a bash block whose long lines continue on the next one, before an option."""
    lines: list[str] = []
    for line in block[1].splitlines():
        first, *options = re.split(r" (?=--?\w|-m )", line) if len(line) > WIDTH else [line]
        lines.append(first)
        for option in options:
            if len(lines[-1]) + len(option) + 3 <= WIDTH:
                lines[-1] += f" {option}"
            else:
                lines[-1] += " \\"
                lines.append(f"    {option}")
    return "```bash\n" + "\n".join(lines) + "\n```"


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace each mark of a page by what it asks for, and keep the tables of the results readable."""

    def describe(mark: re.Match[str]) -> str:
        arguments = [each.strip() for each in (mark[2] or "").split(":") if each.strip()]
        return DESCRIBE[mark[1]](*arguments)

    source[0] = re.sub(r"^```bash\n(.*?)\n```$", wrap_commands, source[0], flags=re.MULTILINE | re.DOTALL)
    if docname.startswith("results/"):  # a cell of two numbers stays on one line
        source[0] = re.sub(r"(?<=\d) / (?=\d)", "\u00a0/\u00a0", source[0])
    if docname.startswith("reference/"):
        source[0] = re.sub(r"^<!-- (api|commands|configs)(?: ([^>]*))? -->$", describe, source[0], flags=re.MULTILINE)


def find_by_last_name(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Resolve a Python reference by its last name where just one object of the site has it.

    Docstrings say :class:`Denoiser` in any module, and types are known by the file that defines them.
    """
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    objects = env.domains.python_domain.objects
    found = {name: entry for name, entry in objects.items() if name.rpartition(".")[2] == last and not entry.aliased}
    if node["reftarget"].count(".") and not node["reftarget"].startswith("lightning_ddpm"):
        found = {name: entry for name, entry in found.items() if name.endswith(f".{node['reftarget']}")}
    if len(found) != 1:
        return None
    name, entry = found.popitem()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def skip_tuple_fields(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, whose docstrings say no more than their position."""
    return True if type(value).__name__ == "_tuplegetter" else None


VERBATIM: dict[str, list[str]] = {}
"""Docstrings of attributes while napoleon runs, which would take what stands before their first colon for a type."""


def keep_attribute(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Remember the docstring of an attribute before napoleon has it."""
    if what in ("attribute", "data"):
        VERBATIM[name] = list(lines)


def restore_attribute(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Put the docstring of an attribute back."""
    if name in VERBATIM:
        lines[:] = VERBATIM.pop(name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill_page)
    app.connect("missing-reference", find_by_last_name)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-docstring", keep_attribute, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
