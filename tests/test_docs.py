"""The documentation agrees with the code."""

import importlib.util
import re

from raysweep.config import SETTINGS
from raysweep.preparation import shipped_spaces
from tests.support import ROOT


def test_the_search_space_reference_is_current():
    path = ROOT / "docs" / "search_space_reference.py"
    spec = importlib.util.spec_from_file_location("search_space_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.reference()
    assert text == (ROOT / "docs" / "search_space_reference.md").read_text(encoding="utf-8"), "run make docs"
    assert all(f"| `{name}` |" in text for name in SETTINGS)


def test_every_dependency_is_justified():
    setup = (ROOT / "setup.cfg").read_text()
    required = setup.split("install_requires =")[1].split("[options.extras_require]")[0].split()
    justified = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in required:
        assert f"| `{re.split('[<>=]', requirement)[0]}` |" in justified


def test_links_and_files_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    targets = [target for target in targets if not target.startswith("https://")]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
    for name in re.findall(r"search_spaces/(\w+)\.yaml", text):
        assert name in shipped_spaces()
    assert "make quickstart" in text
    assert "make test" in text


def test_every_shipped_space_says_its_command_and_cost():
    for name, path in shipped_spaces().items():
        header = path.read_text(encoding="utf-8").split("name:")[0]
        assert "run_sweep.py" in header, name
        assert "trials" in header, name
