"""The site: it builds without a warning, its links resolve, and the code on its pages runs."""

import html.parser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from helpers.command_line import CONFIGS, REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TUTORIALS = [page for page in PAGES if page.startswith("tutorials/")]
NOTEBOOK = DOCS / "tutorials" / "ddpm_from_scratch.ipynb"
FENCE = re.compile(r"^```(?:\{code-block\} )?(\w+)\n(?::caption: (\S+)\n\n)?(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = "-m lightning_ddpm "
# Appended to the commands of tutorials, whose full runs take minutes; the last of two equal options counts.
TINY = {
    "fit": "--trainer.max_steps 2 --trainer.log_every_n_steps 1 --trainer.accelerator cpu"
    " --trainer.num_sanity_val_steps 0 --trainer.limit_val_batches 1 --data.batch_size 8",
    "sample": "--n 3 --steps 5",
    "evaluate": "--n 70 --steps 2",
}
NARROW = "--model.init_args.network.init_args.width 8 --model.init_args.network.init_args.groups 4"
FEW_TIMESTEPS = "--model.init_args.schedule.init_args.steps 20 --model.init_args.sampler.init_args.steps 5"


class Block(NamedTuple):
    """A code block of a page: its language, the file that its caption names, and its text."""

    language: str
    file: str | None
    text: str


def read_blocks(page: str) -> list[Block]:
    return [Block(*found) for found in FENCE.findall((DOCS / page).read_text(encoding="utf-8"))]


def read_commands(page: str) -> list[str]:
    blocks = [block.text.replace("\\\n", "") for block in read_blocks(page) if block.language == "bash"]
    return [line for text in blocks for line in text.splitlines() if line]


def split_command(line: str) -> tuple[dict[str, str], list[str]]:
    """Return the environment variables and the words after ``python -m lightning_ddpm`` of a command line."""
    before, _, after = line.partition(OURS)
    return dict(re.findall(r"^(\w+)=(\S+) ", before)), shlex.split(after)


@cache
def _ours(page: str) -> tuple[str, ...]:
    return tuple(line for line in read_commands(page) if OURS in line)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A temporary folder to work in, importable, with the repository's configs, examples and shipped checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pretrained").symlink_to(REPOSITORY / "checkpoints" / "pretrained")
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write_files(page: str, folder: Path) -> None:
    for block in read_blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in TUTORIALS if page not in ("tutorials/index.md",)])
def test_the_files_and_commands_of_a_tutorial_run(
    page: str, elsewhere: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(page, elsewhere)
    tiny = dict(TINY)
    if page != "tutorials/network.md":
        tiny["fit"] += f" {NARROW}"
    if any("--metrics bpd" in line for line in read_commands(page)):  # costs T network evaluations an image
        tiny["fit"] += f" {FEW_TIMESTEPS}"
    for line in read_commands(page):
        if OURS not in line:
            program, *arguments = shlex.split(line)
            assert program in ("python", "tensorboard")
            if program == "python":
                subprocess.run([sys.executable, *arguments], check=True)
            continue
        variables, (name, *arguments) = split_command(line)
        with monkeypatch.context() as patch:
            patch.delenv("LIGHTNING_DDPM_TRUST", raising=False)
            for variable, value in variables.items():
                patch.setenv(variable, value)
            status, out, err = command(name, *arguments, *tiny.get(name, "").split())
        assert status == 0, f"{line}\n{out}\n{err}"
        for option, value in pairwise(arguments):
            if option == "--out":
                assert (elsewhere / value).exists()


@pytest.mark.parametrize("page", [page for page in TUTORIALS if any(b.file for b in read_blocks(page))])
def test_a_tutorial_shows_a_complete_file_of_at_most_forty_lines(page: str) -> None:
    files = {block.file: block.text for block in read_blocks(page) if block.file}
    assert any(name.endswith(".py") for name in files)
    for name, text in files.items():
        assert 5 <= len(text.splitlines()) <= 40, name
        assert all(len(line) <= 120 for line in text.splitlines()), name


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TUTORIALS and _ours(page)])
def test_the_commands_of_a_page_are_understood(
    page: str, elsewhere: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    write_files(page, elsewhere)
    for line in _ours(page):
        _, (name, *arguments) = split_command(line)
        if name in ("fit", "validate", "test", "predict", "plan"):
            if Path("imported.yaml").name in arguments:
                continue  # the command before it writes that config; the tests of export and import run all three
            status, out, err = command(name, *arguments, "--print_config")
            assert status == 0, f"{line}\n{err}"
            assert yaml.safe_load(out)
        else:
            status, _, err = command(name, *arguments, *TINY.get(name, "").split()[:2])
            missing = r"there is (no|neither) .*(checkpoint|folder|FILE|DIR|samples50k|\w+\.(ckpt|json))"
            assert status == 0 or re.search(missing, err), f"{line}\n{err}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("how-to/", "index"))])
def test_the_python_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for block in read_blocks(page):
        if block.language == "python" and not block.file:
            exec(compile(block.text, page, "exec"), {})


def test_the_curves_that_are_explained_are_those_of_a_run(digits_run: NamedTuple) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(digits_run[0]), {"scalars": 0, "images": 1})
    events.Reload()
    tags = events.Tags()
    text = (DOCS / "tutorials" / "tensorboard.md").read_text(encoding="utf-8")
    table = text[text.index("| curve |") : text.index("Under **Images**")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]

    def by_range(names: Iterable[str]) -> set[str]:
        return {re.sub(r"_t_\d+-\d+$", "_t_range", name) for name in names}

    speed = {"train/images_per_second"}  # needs more steps than this run has
    explained = by_range(name for row in rows for name in re.findall(r"`([\w/-]+)`", row))
    assert by_range(tags["scalars"]) | speed == explained
    assert set(tags["images"]) <= set(re.findall(r"`([\w/]+)`", text))


def test_the_reference_of_reliability_names_tests_that_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (DOCS / "reference" / "reliability.md").read_text(encoding="utf-8"))
    assert named
    assert all((REPOSITORY / name).is_file() for name in named)


def test_the_notebook_and_its_script_have_the_same_cells() -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(NOTEBOOK)
    script = jupytext.read(NOTEBOOK.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]
    errors = [out for cell in notebook.cells for out in cell.get("outputs", []) if out["output_type"] == "error"]
    assert not errors


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = next(cell for cell in reversed(notebook.cells) if cell.cell_type == "code")
    assert "agree with lightning_ddpm" in last.outputs[-1]["text"]


class Page(html.parser.HTMLParser):
    """The links, the anchors and the unresolved references of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.unresolved: list[str] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}  # type: ignore[misc]
        self.links |= {found[name] for name in ("href", "src") if found.get(name)}  # type: ignore[misc]
        if tag == "a":
            self._inside.append("a")
        if tag == "code" and "xref" in (found.get("class") or "").split() and not self._inside:
            self.unresolved.append(str(self.getpos()))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._inside:
            self._inside.pop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of the site, built in a temporary folder with warnings as errors, unless the gate has built it."""
    if built_before := os.environ.get("LIGHTNING_DDPM_TEST_SITE"):
        return {path: Page(path) for path in Path(built_before).rglob("*.html")}
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site") / "html"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)],
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return {path: Page(path) for path in out.rglob("*.html")}


@pytest.mark.slow
def test_every_internal_link_of_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    broken = []
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "http", "data", "mailto"), f"{path.name}: {link}"
                assert parts.scheme in ("data", "mailto") or "." in parts.netloc, f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in site and anchor not in site[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


@pytest.mark.slow
def test_the_site_has_every_page_config_and_command(site: dict[Path, Page]) -> None:
    from lightning_ddpm.commands.main import COMMANDS

    names = {path.stem: path for path in site if path.parent.name == "reference"}
    configs, commands = names["configs"].read_text(), names["commands"].read_text()
    assert all(f">{path.name}<" in configs for path in CONFIGS)
    assert all(f'id="{command}"' in commands for command in COMMANDS)
    assert "--ckpt_path" in commands


@pytest.mark.slow
def test_every_function_that_a_page_names_is_in_the_reference(site: dict[Path, Page]) -> None:
    unresolved = {
        path.name: page.unresolved for path, page in site.items() if not {"api", "py-modindex.html"} & {*path.parts}
    }
    assert not {name: each for name, each in unresolved.items() if each}
