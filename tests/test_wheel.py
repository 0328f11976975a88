"""A wheel is built from the tree, installed elsewhere and used from an empty folder, with a plugin of the examples."""

import os
import shutil
import subprocess
import sys

from tests.support import ROOT


def test_modules_and_search_spaces_travel_with_the_wheel(tmp_path):
    tree = tmp_path / "tree"
    parts = ("raysweep", "search_spaces", "setup.cfg", "pyproject.toml", "README.md")
    tree.mkdir()
    for part in parts:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tree / part)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("raysweep-*.whl"))
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)

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
    arguments += ["--plugin", str(ROOT / "examples" / "my_loss.py"), "--emb_loss", "cosine", "--sharpness", "2"]
    process = subprocess.run(
        [sys.executable, str(script), *arguments, "--le_epochs", "1", "--batch_size", "500", "--local"],
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
