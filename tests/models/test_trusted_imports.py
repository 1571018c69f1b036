"""A package that was installed with an entry point is trusted; one that only lies around is not."""

import site
import sys
from pathlib import Path

import pytest

from lightning_ddpm.models.trusted_imports import list_modules_to_trust, restrict_imports
from lightning_ddpm.utils.errors import UserError


def install(folder: Path, distribution: str, value: str) -> None:
    """Write the metadata that pip writes for a distribution with one entry point."""
    metadata = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[lightning_ddpm.trust]\nmine = {value}\n")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Python's folder of installed packages, with the package ``my_own``, which imports ``os``."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "my_own.py").write_text("import os\n\n\nclass Network: ...\n")
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder)])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    monkeypatch.delenv("LIGHTNING_DDPM_TRUST", raising=False)
    return folder


def is_trusted(name: str) -> bool:
    return not list_modules_to_trust({"network": {"class_path": name}})


def test_an_installed_package_is_trusted_and_nothing_that_it_imports(packages: Path) -> None:
    assert not is_trusted("my_own.Network")
    install(packages, "My-Own", "my_own")
    assert is_trusted("my_own.Network")
    assert not is_trusted("my_own_other.Network")
    config = {"class_path": "my_own.os.system"}
    with (
        pytest.raises(UserError, match=r"names posix.system, which is not part of .*; do not use this file"),
        restrict_imports("model.ckpt", config),
    ):
        raise ValueError("refused by jsonargparse")


@pytest.mark.parametrize(
    ("distribution", "value"),
    [("my-own", "os"), ("my-own", "yours"), ("my-own", "my_own.part"), ("os", "os"), ("torch", "torch")],
)
def test_a_distribution_vouches_for_the_package_of_its_name_only(distribution: str, value: str, packages: Path) -> None:
    install(packages, distribution, value)
    assert not is_trusted(f"{value}.system")
    assert not is_trusted("my_own.Network")


def test_metadata_beside_a_downloaded_checkpoint_do_not_count(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "my-own", "my_own")
    assert not is_trusted("my_own.Network")


def test_a_message_names_what_the_user_has_to_add_and_not_what_is_installed(packages: Path) -> None:
    install(packages, "my-own", "my_own")
    with (
        pytest.raises(UserError, match=r"set LIGHTNING_DDPM_TRUST=another$"),
        restrict_imports("model.ckpt", {"class_path": "another.Network"}),
    ):
        raise ValueError("refused by jsonargparse")
