"""The arrows of the architecture: a file imports only what stands below it."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lightning_ddpm

ROOT = Path(lightning_ddpm.__file__).parent

# From the ground up. A line imports only from lines above it; the files of one folder import one another, never round
# in a circle.
LAYERS = [
    ["utils"],
    ["diffusion", "data"],
    ["networks"],
    ["interop"],
    ["models"],
    ["metrics"],
    ["callbacks"],
    ["commands"],
    ["__main__"],
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py"))


def imports(file: str) -> set[str]:
    """All that a file imports, inside functions too: ``torch.nn``, ``lightning_ddpm.utils.errors``, ..."""
    path = ROOT / (file.replace(".", "/") + ".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}"
            module = node.module or ""
            # ``from package import part`` imports the part where it is one
            found |= {f"{module}.{a.name}" if is_ours(f"{module}.{a.name}") else module for a in node.names}
    return found


def is_ours(module: str) -> bool:
    path = ROOT.parent / module.replace(".", "/")
    return module.startswith("lightning_ddpm") and (path.is_dir() or path.with_suffix(".py").is_file())


def ours(file: str) -> set[str]:
    """The files and folders of this package that a file imports, without the package's name."""
    return {name.removeprefix("lightning_ddpm.") for name in imports(file) if name.startswith("lightning_ddpm.")}


def others(file: str) -> set[str]:
    """The libraries that a file imports."""
    return {name.split(".")[0] for name in imports(file)} - {"lightning_ddpm"}


def part(module: str) -> str:
    return module.split(".")[0]


def within(folder: str) -> list[str]:
    return [file for file in FILES if part(file) == folder]


def test_every_file_has_its_place() -> None:
    assert {part(file) for file in FILES} - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__"])
def test_a_file_imports_only_what_stands_below_it(file: str) -> None:
    for imported in ours(file):
        assert part(imported) == part(file) or HEIGHT[part(imported)] < HEIGHT[part(file)], f"{file} -> {imported}"


def test_the_root_holds_two_files() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_no_imports_go_round_in_a_circle() -> None:
    def target(name: str) -> str:
        return name if name in FILES else f"{name}.__init__"

    order = TopologicalSorter({file: {target(name) for name in ours(file)} for file in FILES}).static_order()
    assert len(list(order)) == len(FILES)


@pytest.mark.parametrize("file", within("diffusion"))
def test_the_mathematics_needs_torch_and_the_errors_only(file: str) -> None:
    solver = {"torchdiffeq"} if file == "diffusion.samplers.ode" else set()
    assert others(file) <= set(sys.stdlib_module_names) | {"torch"} | solver
    assert {part(name) for name in ours(file)} <= {"diffusion", "utils"}


@pytest.mark.parametrize("file", within("diffusion"))
def test_the_mathematics_opens_no_files(file: str) -> None:
    assert not others(file) & {"io", "os", "pathlib", "tempfile", "shutil", "pickle"}


@pytest.mark.parametrize("file", within("networks"))
def test_networks_need_torch_and_einops_only(file: str) -> None:
    assert others(file) <= set(sys.stdlib_module_names) | {"torch", "einops"}
    assert {part(name) for name in ours(file)} <= {"networks", "utils"}


def test_the_network_is_injected() -> None:
    assert not any(part(name) == "networks" for name in ours("models.ddpm"))


def test_callbacks_and_generation_do_not_know_the_command_line() -> None:
    for file in [*within("callbacks"), *within("metrics"), "models.generate", "models.ddpm"]:
        assert not others(file) & {"argparse", "jsonargparse"}, file


def test_the_mathematics_can_be_used_where_lightning_is_not_installed() -> None:
    program = (
        "import sys\n"
        "for name in ('pytorch_lightning', 'lightning_fabric', 'lightning', 'torchvision', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "import lightning_ddpm.diffusion, lightning_ddpm.networks\n"
        "print(sorted(name for name in sys.modules if name.startswith('lightning_ddpm.')))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded = {name.removeprefix("lightning_ddpm.").split(".")[0] for name in ast.literal_eval(ran.stdout)}
    assert loaded == {"diffusion", "networks", "utils"}


def test_help_comes_without_loading_torch() -> None:
    program = (
        "import sys; from lightning_ddpm.commands.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_what_was_imported_is_looked_through_for_garbage_only_at_the_end() -> None:
    program = (
        "import atexit, gc\n"
        "from lightning_ddpm.commands.main import main\n"
        "atexit.register(lambda: print('in the end', gc.get_freeze_count()))\n"
        "assert main(['sample', '--ckpt', 'none.ckpt', '--n', '1', '--out', 'none']) == 2\n"
        "print('frozen', gc.get_freeze_count() > 100_000, gc.isenabled())"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-2:] == ["frozen True True", "in the end 0"], ran.stdout


def test_importing_the_package_leaves_the_process_as_it_was() -> None:
    """Every file is imported after the libraries that it uses, which may have effects of their own."""
    libraries = {name for file in FILES for name in imports(file) if not name.startswith("lightning_ddpm")} - {"lmdb"}
    modules = [f"lightning_ddpm.{file}".removesuffix(".__init__") for file in FILES if file != "__main__"]
    program = (
        "import gc, importlib, logging, os, sys, warnings\n"
        "def snapshot():\n"
        "    os.umask(umask := os.umask(0))\n"
        "    loggers = [logging.root, *logging.root.manager.loggerDict.values()]\n"
        "    handlers = {each.name: [*each.handlers] for each in loggers if getattr(each, 'handlers', None)}\n"
        "    collector = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()\n"
        "    return umask, handlers, collector, [*warnings.filters], dict(os.environ), [*sys.path]\n"
        f"for name in {sorted(libraries)}:\n"
        "    importlib.import_module(name)\n"
        "before = snapshot()\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "for old, new in zip(before, snapshot(), strict=True):\n"
        "    assert old == new, (old, new)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
