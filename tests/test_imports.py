"""The architecture: which file may import which, sizes, public names, and what importing costs and changes."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lightning_ddpm

ROOT = Path(lightning_ddpm.__file__).parent

# From the bottom up: a folder imports only from the folders above it in this list. The files of one folder may import
# one another, without cycles.
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
    """Return all modules that a file imports, also inside functions, as in ``lightning_ddpm.utils.errors``."""
    path = ROOT / (file.replace(".", "/") + ".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}"
            module = node.module or ""
            # ``from package import name`` imports a module if the name is one
            found |= {f"{module}.{a.name}" if is_ours(f"{module}.{a.name}") else module for a in node.names}
    return found


def is_ours(module: str) -> bool:
    path = ROOT.parent / module.replace(".", "/")
    return module.startswith("lightning_ddpm") and (path.is_dir() or path.with_suffix(".py").is_file())


def ours(file: str) -> set[str]:
    """Return the files and folders of this package that a file imports, without the package's name."""
    return {name.removeprefix("lightning_ddpm.") for name in imports(file) if name.startswith("lightning_ddpm.")}


def others(file: str) -> set[str]:
    """Return the libraries that a file imports."""
    return {name.split(".")[0] for name in imports(file)} - {"lightning_ddpm"}


def part(module: str) -> str:
    return module.split(".")[0]


def within(folder: str) -> list[str]:
    return [file for file in FILES if part(file) == folder]


def test_every_file_is_in_a_folder_of_the_architecture() -> None:
    assert {part(file) for file in FILES} - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__"])
def test_a_file_imports_only_from_lower_folders(file: str) -> None:
    for imported in ours(file):
        assert part(imported) == part(file) or HEIGHT[part(imported)] < HEIGHT[part(file)], f"{file} -> {imported}"


def test_the_root_holds_two_files() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_imports_have_no_cycles() -> None:
    def target(name: str) -> str:
        return name if name in FILES else f"{name}.__init__"

    order = TopologicalSorter({file: {target(name) for name in ours(file)} for file in FILES}).static_order()
    assert len(list(order)) == len(FILES)


@pytest.mark.parametrize("file", within("diffusion"))
def test_the_mathematics_imports_only_torch_and_the_errors(file: str) -> None:
    solver = {"torchdiffeq"} if file == "diffusion.samplers.ode" else set()
    assert others(file) <= set(sys.stdlib_module_names) | {"torch"} | solver
    assert {part(name) for name in ours(file)} <= {"diffusion", "utils"}


@pytest.mark.parametrize("file", within("diffusion"))
def test_the_mathematics_opens_no_files(file: str) -> None:
    assert not others(file) & {"io", "os", "pathlib", "tempfile", "shutil", "pickle"}


@pytest.mark.parametrize("file", within("networks"))
def test_networks_import_only_torch_and_einops(file: str) -> None:
    assert others(file) <= set(sys.stdlib_module_names) | {"torch", "einops"}
    assert {part(name) for name in ours(file)} <= {"networks", "utils"}


def test_the_network_is_injected() -> None:
    assert not any(part(name) == "networks" for name in ours("models.ddpm"))


def test_callbacks_and_generation_do_not_know_the_command_line() -> None:
    for file in [*within("callbacks"), *within("metrics"), "models.generate", "models.ddpm"]:
        assert not others(file) & {"argparse", "jsonargparse"}, file


def test_the_mathematics_works_without_lightning() -> None:
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


def test_the_package_is_imported_without_torch() -> None:
    program = "import sys, lightning_ddpm, lightning_ddpm.commands.main; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    "arguments", [["-m", "lightning_ddpm", "--help"], ["-c", "import lightning_ddpm"]], ids=" ".join
)
def test_help_and_import_take_less_than_a_tenth_of_a_second(arguments: list[str]) -> None:
    """The best of five processes, in processor time, which does not depend on what else the machine runs."""
    seconds = []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    assert min(seconds) < 0.1


def test_the_garbage_collector_skips_the_imported_objects_until_the_end() -> None:
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
    """The libraries are imported first, because they may have effects of their own."""
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


@pytest.mark.parametrize(("folder", "most"), [("lightning_ddpm", 300), ("tests", 500)])
def test_no_file_is_too_long(folder: str, most: int) -> None:
    sizes = {path: path.read_bytes().count(b"\n") for path in (ROOT.parent / folder).rglob("*.py")}
    assert {str(path.relative_to(ROOT.parent)): size for path, size in sizes.items() if size > most} == {}


def parse_files() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path of every file of the package, and its syntax tree."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_no_two_public_names_differ_only_in_case() -> None:
    names = defaultdict(set)
    for _, tree in parse_files():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names[node.name.lower()].add(node.name)
    assert [each for each in names.values() if len(each) > 1] == []


PARTICIPLES = {
    *("aside", "asked", "averaged", "cached", "counted", "dealt", "decoded", "denoised", "downsampled", "drawn"),
    *("extrapolated", "given", "guided", "held", "kept", "known", "left", "listed", "loaded", "made", "measured"),
    *("named", "placed", "restored", "sampled", "seen", "spaced", "stacked", "told", "unclipped", "used", "written"),
}


def test_no_public_function_is_named_by_a_participle() -> None:
    found = [
        f"{file}: {node.name}"
        for file, tree in parse_files()
        for scope in [tree, *(each for each in tree.body if isinstance(each, ast.ClassDef))]
        for node in scope.body
        if isinstance(node, ast.FunctionDef) and node.name in PARTICIPLES
    ]
    assert found == []


PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}  # methods of named tuples, and os._exit, which is documented
PRIVATE_API = {
    "callbacks/ema.py": r"torch\._foreach_\w+",  # documented by torch, and what its optimizers use
    "diffusion/schedule.py": r"super\(\)\._apply",  # the only hook of a module that moves its buffers
}


def test_private_api_is_used_in_one_file_for_each_library() -> None:
    """Private modules, and private attributes of other objects than ``self``, are for ``utils/..._internals.py``."""
    found = []
    for file, tree in parse_files():
        if file.startswith("utils/") and file.endswith("_internals.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)_(?!_)", node.module or ""):
                found.append(f"{file}: {node.module}")
            if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr) and node.attr not in PUBLIC:
                used = ast.unparse(node)
                if not re.match(r"(self|cls)\._\w+$", used) and not re.fullmatch(PRIVATE_API.get(file, "(?!)"), used):
                    found.append(f"{file}: {used}")
    assert found == []
