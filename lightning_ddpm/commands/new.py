"""``new``: begin a project of one's own, in a folder with a package, a config and tests that work from the start.

The template is ``template/`` of the repository. Its name, ``my_project``, is replaced. A file with ``.ANSWER.`` in its
name, and a line that ends in ``#: ANSWER``, are copied for that answer only; ``#: ONE|OTHER`` is for either of two, and
``#: ONE OTHER`` for both.
"""

import keyword
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

import lightning_ddpm
from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.shipped import TEMPLATE
from lightning_ddpm.utils.yaml_text import build_parser

NAME = "my_project"
"""The name of the project in the template."""
DATA = ("digits", "folder", "array", "paired")
LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
CONDITIONS = ("conditional", "unconditional")
SKIPPED = ("__pycache__", ".pytest_cache", ".ruff_cache")
_ANSWER = "|".join((*DATA, *LOGGERS, *CONDITIONS))
_TAG = re.compile(rf"\s+#: ((?:{_ANSWER})(?:[| ](?:{_ANSWER}))*)$")


def run(arguments: Sequence[str]) -> None:
    """Parse the options and write the project."""
    parser = build_parser("new", "Begin a project of your own: `new my_project`, with options after the name.")
    add = parser.add_argument
    add("--folder", type=resolve_path, required=True, help="the project's folder and name; may be the first word")
    what = "what data.py reads: digits, PNG files, an array in a file, or pairs of PNG files"
    add("--data", choices=DATA, default="digits", help=what)
    add("--conditional", action="store_true", help="condition the model on the classes of the data")
    add("--logger", choices=LOGGERS, default="tensorboard", help="where the curves go")
    named = bool(arguments) and not arguments[0].startswith("-")
    options = parse(parser, ["--folder", *arguments] if named else arguments, "new")
    folder = Path(os.path.abspath(options.folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{options.folder} exists already; choose another name, or delete it")
    name = folder.name.replace("-", "_")
    _check_name(name)
    check_writable(folder.parent)
    answers = (options.data, options.logger, CONDITIONS[0] if options.conditional else CONDITIONS[1])
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        written = write_project(Path(temporary, folder.name), name, answers)
        os.replace(Path(temporary, folder.name), folder)  # in whole, or not at all
    report(f"wrote {options.folder}: {', '.join(written)}")
    data = "" if options.data == "digits" else " --data.root DIR"
    report(f"next: cd {options.folder} && pip install -e '.[test]' && pytest")
    report(f"then: python -m lightning_ddpm fit --config configs/train.yaml{data}")


def write_project(folder: Path, name: str, answers: Collection[str]) -> list[str]:
    """Copy the template.

    Args:
        folder: where to write; it does not exist.
        name: the project's name, an identifier.
        answers: what was chosen of each of the questions.

    Returns:
        the relative paths of the files.
    """
    template, written = TEMPLATE.get_folder(), list[str]()
    renamed = {NAME: name, NAME.replace("_", "-"): name.replace("_", "-")}
    renamed |= {"scripts/train.sbatch configs/cifar10.yaml checkpoints/cifar10": "run.sbatch configs/train.yaml RUN"}
    renamed |= {"LIGHTNING_DDPM_VERSION": lightning_ddpm.__version__}
    for source in sorted(path for path in template.rglob("*") if path.is_file()):
        relative = source.relative_to(template)
        stem, _, rest = relative.name.lstrip(".").partition(".")
        answer, _, suffix = rest.partition(".")
        if not set(relative.parts).isdisjoint(SKIPPED) or (suffix and answer not in answers):
            continue
        relative = relative.with_name(f"{stem}.{suffix}") if suffix else relative
        target = folder / str(relative).replace(NAME, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _choose_lines(source.read_text(encoding="utf-8"), set(answers))
        for before, after in renamed.items():
            text = text.replace(before, after)
        target.write_text(text, encoding="utf-8")
        shutil.copymode(source, target)
        written.append(target.relative_to(folder).as_posix())
    return written


def _choose_lines(text: str, answers: set[str]) -> str:
    """Return the lines that belong to every project or to the answers."""
    kept = []
    for line in text.splitlines(keepends=True):
        tag = _TAG.search(line.rstrip("\n"))
        if tag is None or all(not answers.isdisjoint(each.split("|")) for each in tag[1].split()):
            kept.append(line if tag is None else f"{line[: tag.start()]}\n")
    return "".join(kept)


def _check_name(name: str) -> None:
    """Raise UserError if a project's name cannot be that of a Python package, or is taken by another one."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        rule = "a letter a-z, then a-z, 0-9 and _ only, and no word of Python's own"
        raise UserError(f"the project is a Python package, whose name must be {rule}, got {name}")
    spec = None if name in sys.stdlib_module_names else find_spec(name)
    if name in sys.stdlib_module_names or (spec and spec.origin):
        where = f" ({spec.origin})" if spec else ""
        raise UserError(f"{name} is the name of a package that Python has already{where}; choose another one")
