"""One meaning of every path."""

import os
from pathlib import Path

import pytest
from jsonargparse import Namespace

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import get_cache_folder
from lightning_ddpm.utils.paths import resolve_lightning_paths, resolve_path


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home folder and the current one are folders of the test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/run", "{home}/run"),
        ("~", "{home}"),
        ("~root/run", f"{os.path.expanduser('~root')}/run"),
        ("checkpoints/run/", "checkpoints/run"),
        ("a//b/./c", "a/b/c"),
        ("a/../b", "{here}/b"),
        ("./~/run", "{here}/~/run"),
        ("$HOME/run", "$HOME/run"),
        ("a~b", "a~b"),
    ],
)
def test_a_path_has_one_meaning_however_often_it_is_resolved(given: str, expected: str, tmp_path: Path) -> None:
    resolved = resolve_path(given)
    assert str(resolved) == expected.replace("{home}", str(tmp_path / "home")).replace("{here}", str(tmp_path))
    assert resolve_path(resolved) == resolved
    assert resolve_path(str(resolved)) == resolved


def test_the_parent_of_a_link_is_that_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert resolve_path("link/../run") == tmp_path / "far" / "run"
    assert resolve_path("link/run") == Path("link/run")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("file:///tmp/run", "remove file:"),
        ("file:run", "remove file:"),
        ("s3://bucket/run", "remove s3://"),
        ("", "a path is empty"),
        ("a\0b", "null character"),
        ("~nobody-of-this-name/run", "there is no home folder ~nobody-of-this-name"),
        (os.fsdecode(b"caf\xe9/run"), r"the path caf\xe9/run is not UTF-8"),
        ("x" * 256, "longer than 255 bytes"),
    ],
)
def test_what_is_no_local_path_is_refused(given: str, part: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve_path(given)
    assert part in str(refused.value)
    str(refused.value).encode()  # can be printed


def test_the_paths_of_lightnings_classes_are_resolved_wherever_they_stand(home: Path) -> None:
    logger = Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="~/logs", name="~name"))
    options = Namespace(trainer=Namespace(default_root_dir="~/run", logger=[logger], profiler={"dirpath": "~/p"}))
    resolve_lightning_paths(options)
    assert options.trainer.default_root_dir == str(home / "run")
    assert logger.init_args.save_dir == str(home / "logs")
    assert logger.init_args.name == "~name"
    assert options.trainer.profiler["dirpath"] == str(home / "p")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("LIGHTNING_DDPM_CACHE", "~/c", "c"), ("XDG_CACHE_HOME", "~/c", "c/lightning_ddpm")],
)
def test_the_cache_is_where_its_variable_means(
    variable: str, value: str, expected: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIGHTNING_DDPM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert get_cache_folder() == home / ".cache" / "lightning_ddpm"
    monkeypatch.setenv(variable, value)
    assert get_cache_folder() == home / expected
