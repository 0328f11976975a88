"""The package's structure: import order, file lengths, and that the core works without Ray."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "raysweep"

# An entry may import earlier entries, but no later ones.
ORDER = [
    "errors", "system", "declarations", "part_functions", "parts", "config", "part_sources", "plugins", "space", "data",
    "randomness", "augment", "models", "methods", "training", "results", "probes", "trial_progress", "trial_sharing",
    "trial_run", "trial", "estimate", "part_checks", "portable", "report", "backends", "preparation", "evaluations",
    "running", "api", "sweep_results", "python_arguments", "interface", "dry_run", "overview", "arguments", "printing",
    "cli", "__main__",
]  # fmt: skip
LIGHT = ("errors", "system/places", "config", "space", "results/store", "results/credentials", "cli")
HEAVY = {"torch", "torchvision", "ray", "sklearn", "scipy", "matplotlib", "tensorboard", "numpy", "pyarrow", "bokeh"}
PRIVATE = ("_private", ".impl", "_internal", ".execution")
LONGEST_FILE = 400  # lines
MOST_METHODS = 19

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
PATHS = [path for path in MODULES.values() if path != PACKAGE / "__init__.py"]


def relative(path):
    return str(path.relative_to(PACKAGE))


def entry_of(module):
    """Return the entry of ORDER that a module belongs to."""
    return module.split(".")[1]


@cache
def tree_of(path):
    return ast.parse(path.read_text())


def for_types_only(tree):
    """Return the ids of nodes that only the type checker reads. They import nothing at run time."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {id(node) for block in blocks for child in block.body for node in ast.walk(child)}


@cache
def imports(path, top_level_only=False):
    """Return the absolute name of every module that a file imports."""
    return list(find_imports(path, top_level_only))


def find_imports(path, top_level_only):
    tree = tree_of(path)
    skipped = for_types_only(tree)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            assert node.level == 0, f"{path}: relative import"
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module in MODULES else node.module


def test_imports_run_downward_between_rooms():
    for path in PATHS:
        mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports(path):
            if module.startswith("raysweep."):
                above = ORDER.index(entry_of(module)) > ORDER.index(mine)
                assert not above, f"{relative(path)} imports {module}, which lies above it"


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        module: {other for other in imports(path) if other in MODULES and other not in (module, "raysweep")}
        for module, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_only_the_ray_backend_imports_ray_and_only_its_public_interface():
    for path in PATHS:
        from_ray = [module for module in imports(path) if module.split(".")[0] == "ray"]
        if PACKAGE / "backends" / "ray" in path.parents:
            assert not [module for module in from_ray if any(word in module for word in PRIVATE)], relative(path)
        else:
            assert not from_ray, relative(path)


def test_no_file_is_long():
    lengths = {relative(path): path.read_text().count("\n") for path in PATHS}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}


def test_no_class_has_many_methods():
    for path in PATHS:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
                assert len(methods) <= MOST_METHODS, f"{relative(path)}: {node.name}"


def test_every_module_says_in_its_first_line_what_it_is_for():
    for path in PATHS:
        docstring = ast.get_docstring(tree_of(path))
        assert docstring, relative(path)
        assert docstring.splitlines()[0].endswith("."), relative(path)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    path = PACKAGE / name
    for file in path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        assert not {module.split(".")[0] for module in imports(file, top_level_only=True)} & HEAVY


def test_the_readme_shows_every_room():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for entry in {path.relative_to(PACKAGE).parts[0] for path in PATHS}:
        assert f"{entry}/ " in readme or f"{entry} " in readme, f"the README's tree lacks {entry}"


def test_core_runs_with_ray_blocked_and_leaves_the_compiler_alone(few, tmp_path):
    program = """
import sys
sys.modules["ray"] = None
from raysweep.cli import main
status = main(["sweep", "--local", "--usl_epochs", "1", "--le_epochs", "1", *sys.argv[1:]])
assert "torch" in sys.modules and "torch._dynamo" not in sys.modules  # 1.35 s of every process
sys.exit(status)
"""
    data = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    arguments = [*data, "--output", tmp_path]
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert (Path(tmp_path) / "ae_parallel" / "seed=0" / "result.json").is_file()


def test_help_imports_nothing_heavy():
    program = f"""
import sys
from raysweep.cli import main
try:
    main(["sweep", "--help"])
except SystemExit as stop:
    assert stop.code == 0
found = {HEAVY!r} & set(sys.modules)
sys.exit(f"imported: {{found}}" if found else 0)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "--usl_type" in process.stdout


def test_errors_come_before_torch_or_ray_are_imported():
    faults = [["--alpha", "-1"], ["--alhpa", "1"], ["none.yaml"], ["--set", "alpha=[]"]]
    faults.append(["--dataset", "folder:nowhere"])
    program = f"""
import sys
from raysweep.cli import main
for arguments in {faults!r}:
    assert main(["sweep", *arguments]) == 2
    found = {{"torch", "torchvision", "ray", "sklearn", "scipy", "matplotlib"}} & set(sys.modules)
    assert not found, (arguments, found)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
