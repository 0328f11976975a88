"""A wheel is built from the tree, installed elsewhere and used from an empty folder, with a plugin of the examples."""

import os
import shutil
import subprocess
import sys

from tests.support import ROOT


def test_modules_and_search_spaces_travel_with_the_wheel(few, tmp_path):
    tree = tmp_path / "tree"
    parts = ("raysweep", "search_spaces", "setup.cfg", "pyproject.toml", "README.md")
    tree.mkdir()
    for part in parts:
        if (ROOT / part).is_dir():  # other processes may write into __pycache__
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, tree / part)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-compile"]
    install += ["--no-build-isolation", "--target", str(site), str(tree)]  # pip builds the wheel first
    subprocess.run(install, check=True, capture_output=True)

    for source, installed, files in (
        (ROOT / "raysweep", site / "raysweep", "*.py"),
        (ROOT / "raysweep", site / "raysweep", "page.html"),
        (ROOT / "raysweep", site / "raysweep", "page.css"),
        (ROOT / "raysweep", site / "raysweep", "page.js"),
        (ROOT / "search_spaces", site / "raysweep" / "search_spaces", "*.yaml"),
    ):
        expected = {path.relative_to(source) for path in source.rglob(files)}
        assert {path.relative_to(installed) for path in installed.rglob(files)} == expected

    empty = tmp_path / "empty"
    empty.mkdir()
    script = site / "bin" / "raysweep"
    arguments = ["sweep", "--exp_type", "alpha", "--set", "alpha=[0.1, 1]", "--set", "seed=0", "--usl_epochs", "1"]
    arguments += [word for name, value in few.items() for word in (f"--{name}", str(value))]
    arguments += ["--plugin", str(ROOT / "examples" / "my_loss.py"), "--emb_loss", "cosine", "--sharpness", "2"]
    process = subprocess.run(
        [sys.executable, str(script), *arguments, "--le_epochs", "1", "--local"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    results = sorted(path.parent.name for path in (empty / "runs" / "alpha").glob("*/result.json"))
    assert results == ["alpha=0.1,seed=0", "alpha=1.0,seed=0", "random,seed=0"]
    provenance = (empty / "runs" / "alpha" / "sweep.yaml").read_text()
    assert "commit: null" in provenance, "the command must run from the wheel"
    assert (empty / "runs" / "alpha" / "plugins" / "my_loss.py").is_file()
    assert (empty / "runs" / "alpha" / "report.html").is_file()
