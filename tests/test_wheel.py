"""The wheel works alone: in an empty folder, without the repository, with what ships found by its name."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.command_line import REPOSITORY, run

import lightning_ddpm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel, built from the sdist, installs; without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    assert built.returncode == 0, built.stderr
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "LICENSE", "configs/digits.yaml", "tests/test_wheel.py", "docs/index.md"} <= names
    assert not any(name.startswith(("data/", "docs/_build")) or name.endswith(".pyc") for name in names)
    built = run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist)
    assert built.returncode == 0, built.stderr
    ran = run(*pip, "install", "-q", "--no-deps", "--no-compile", "--target", folder / "site", *folder.glob("*.whl"))
    assert ran.returncode == 0, ran.stderr
    return folder / "site"


def call(folder: Path, installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder with the installed package, and check that it succeeds."""
    program = (
        "import os, sys\n"
        "os.chdir(sys.argv.pop(1))\n"
        "import lightning_ddpm.commands.main\n"
        f"assert lightning_ddpm.__file__.startswith({str(installed)!r})\n"
        "sys.exit(lightning_ddpm.commands.main.main())"
    )
    ran = run(sys.executable, "-c", program, folder, *arguments, PYTHONPATH=installed)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_the_version_stands_in_one_place(installed: Path) -> None:
    (metadata,) = installed.glob("lightning_ddpm-*.dist-info/METADATA")
    assert f"\nVersion: {lightning_ddpm.__version__}\n" in metadata.read_text()
    assert lightning_ddpm.__version__ not in (REPOSITORY / "pyproject.toml").read_text()
    assert lightning_ddpm.__version__ not in (REPOSITORY / "CITATION.cff").read_text().replace("cff-version: 1.2.0", "")


def test_configs_and_checkpoints_are_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    tiny = ("--trainer.max_steps", 2, "--trainer.callbacks", "null", "--trainer.num_sanity_val_steps", 0)
    call(tmp_path, installed, "fit", "--config", "digits", *tiny, "--trainer.accelerator", "cpu")
    assert (tmp_path / "checkpoints" / "digits" / "config.yaml").is_file()
    call(tmp_path, installed, "sample", "--ckpt", "digits", "--n", 2, "--steps", 2, "--out", "samples")
    assert (tmp_path / "samples" / "000001.png").is_file()
    shipped = installed / "lightning_ddpm"
    for inside, beside in (("configs", "configs"), ("pretrained", "checkpoints/pretrained")):
        files = {path.name: path.read_bytes() for path in (shipped / inside).iterdir()}
        assert files == {path.name: path.read_bytes() for path in (REPOSITORY / beside).iterdir()}


def test_an_editable_installation_has_no_copies_of_them(tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel:editable", "-d", tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith("lightning_ddpm/")]
    assert any(name.endswith(".pth") for name in names)


@pytest.fixture(scope="module")
def python(installed: Path) -> Path:
    """The Python of a fresh environment with that wheel, and the libraries of this one."""
    environment = installed.parent / "venv"
    venv.create(environment, symlinks=True, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "wheel_and_libraries.pth").write_text(f"{installed}\n{sysconfig.get_path('purelib')}\n")
    return environment / "bin" / "python"


@pytest.fixture(scope="module")
def projects(installed: Path, python: Path) -> Path:
    """A folder with a project for each kind of data, all of them installed in that environment."""
    folder = installed.parent / "projects"
    folder.mkdir()
    options = {"digits": ["--conditional"], "folder": [], "array": ["--conditional", "--logger", "csv"], "paired": []}
    for data, more in options.items():
        name = f"my_{data}"
        call(folder, installed, "new", name, "--data", data, *more)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "-q")
        ran = run(*pip, "--no-deps", "--no-build-isolation", folder / name)
        assert ran.returncode == 0, ran.stderr
    return folder


def test_new_projects_pass_their_tests_where_they_are_installed(python: Path, projects: Path) -> None:
    ran = run(python, "-m", "pytest", "-q", projects, LIGHTNING_DDPM_TRUST="")
    assert ran.returncode == 0, ran.stdout
    assert "12 passed" in ran.stdout


ALONE = f"""
import sys
from lightning_ddpm.commands.main import main
status = main()
loaded = [str(getattr(each, "__file__", "")) for each in list(sys.modules.values())]
assert any(each.endswith("my_digits/network.py") for each in loaded), "the project's own classes were not built"
assert not [each for each in loaded if each.startswith({str(REPOSITORY / "lightning_ddpm")!r})]
sys.exit(status)
"""
"""The command line, which fails where a module of the repository was loaded."""


def test_a_checkpoint_of_a_new_project_is_used_and_published_without_the_repository(
    python: Path, projects: Path, tmp_path: Path
) -> None:
    """In a folder that holds nothing but the run, without PYTHONPATH or LIGHTNING_DDPM_TRUST."""

    def use(*arguments: object) -> None:
        outside = ("env", "-C", tmp_path, "-u", "PYTHONPATH", "-u", "LIGHTNING_DDPM_TRUST")
        ran = run(*outside, python, "-c", ALONE, *arguments)
        assert ran.returncode == 0, ran.stderr

    few = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.callbacks.Evaluation.n", 70]
    few += ["--trainer.callbacks.Evaluation.every_n_steps", 20, "--trainer.val_check_interval", 20]
    few += ["--model.network.width", 16, "--data.batch_size", 8]
    config, fast = projects / "my_digits" / "configs" / "train.yaml", ("--accelerator", "cpu", "--steps", 2)
    use("fit", "--config", config, *few, "--trainer.max_steps", 20)
    run_folder = tmp_path / "checkpoints" / "train"
    use("fit", "--config", run_folder / "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", 40)
    assert torch.load(run_folder / "last.ckpt", weights_only=True)["global_step"] == 40
    last = ("--ckpt", run_folder / "last.ckpt")
    use("sample", *last, "--n", 2, "--label", 7, "--out", "samples", *fast)
    evaluate = ("evaluate", "--n", 70, "--extractor", "DigitsFeatures", "--metrics", "fid", *fast)
    use(*evaluate, *last, "--out", "result.json")
    export = ("export", *last, "--format", "release", "--out", "release", "--samples", 4, "--license", "apache-2.0")
    use(*export, "--metrics", "result.json")

    card = (tmp_path / "release" / "README.md").read_text()
    value = json.loads((tmp_path / "result.json").read_text())["metrics"]["fd_digits"]["value"]
    assert f"| fd_digits | {value:.5g} |" in card
    assert "Its classes are in `my_digits" in card
    shutil.rmtree(run_folder)  # what was published is all that there is
    released = ("--ckpt", tmp_path / "release" / "model.ckpt")
    use("sample", *released, "--n", 2, "--label", 7, "--out", "again", *fast)
    for index in range(2):
        assert (tmp_path / "again" / f"00000{index}.png").read_bytes() == (
            tmp_path / "samples" / f"00000{index}.png"
        ).read_bytes()
    use(*evaluate, *released, "--out", "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["metrics"]["fd_digits"]["value"] == value
