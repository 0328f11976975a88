"""The house: who imports whom, and that the core runs without Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "raysweep"

# A module may import those before it in this list, none after it.
ORDER = [
    "errors", "cpus", "temporary", "terminal", "places", "memory", "config", "files", "bucket", "space",
    "randomness", "folders", "data", "inputs", "augment", "ranks", "models", "adam", "losses", "objective",
    "pretrain", "probes", "store", "stopping", "events", "experiment", "portable", "view", "statistics", "drawing",
    "figures", "report", "preview", "local", "sweep", "cli", "__main__",
]  # fmt: skip
LIGHT = ("errors", "places", "config", "bucket", "space", "store", "cli")
HEAVY = {"torch", "torchvision", "ray", "sklearn", "scipy", "matplotlib", "tensorboard", "numpy", "pyarrow"}


def part_of(path):
    """The entry of ORDER that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, top_level_only=False):
    """Every module that a file imports, absolute."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ([f"raysweep.{n.name}" for n in node.names] if node.module == "raysweep" else [node.module])


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward_only(path):
    own = ORDER.index(part_of(path))
    for module in imports(path):
        if module.startswith("raysweep.") and module != "raysweep.__version__":
            other = ORDER.index(module.split(".")[1])
            assert other <= own, f"{path.name} imports {module}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_sweep_imports_ray(path):
    if part_of(path) != "sweep":
        assert not [module for module in imports(path) if module.split(".")[0] == "ray"]
    else:
        private = [m for m in imports(path) if "_private" in m or ".impl" in m or "_internal" in m or ".execution" in m]
        assert not private


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    found = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py", top_level_only=True)}
    assert not found & HEAVY


def test_core_runs_with_ray_blocked_and_leaves_the_compiler_alone(tmp_path):
    program = """
import sys
sys.modules["ray"] = None
from raysweep.cli import main
status = main(["sweep", "--local", "--usl_epochs", "1", "--le_epochs", "1", "--output", sys.argv[1]])
assert "torch" in sys.modules and "torch._dynamo" not in sys.modules  # 1.35 s of every process
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
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
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--usl_type" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--alpha", "-1"], ["--alhpa", "1"], ["none.yaml"], ["--set", "alpha=[]"], ["--dataset", "folder:nowhere"]],
    ids=" ".join,
)
def test_errors_come_before_torch_or_ray_are_imported(arguments):
    program = f"""
import sys
from raysweep.cli import main
assert main(["sweep", *{arguments!r}]) == 2
found = {{"torch", "torchvision", "ray", "sklearn", "scipy", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported: {{found}}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
