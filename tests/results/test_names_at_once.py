"""When several processes want a name at the same moment, each new sweep and each comparison gets a different one."""

import subprocess

import pytest
import yaml

from raysweep import cli, space
from raysweep.errors import InputError
from raysweep.results import store
from raysweep.results.store import Store
from tests.support import ROOT, forked
from tests.support.odd_files import make

CREATE = """
import sys
from pathlib import Path
from raysweep import space
from raysweep.results.store import Store
from raysweep.errors import InputError
sweep = space.build({"name": "a", "base": {"seed": int(sys.argv[1])}}, {}, "s.yaml")
planned = Store.plan(Path("runs"), sys.argv[2] or None, "a")
print("ready", flush=True)
sys.stdin.readline()
try:
    print(planned.create(sweep, {}).root.name)
except InputError as fault:
    print(fault)
"""


def race(folder, count, name=""):
    """Start `count` processes that create planned sweeps at once, process N with seed N; return what each prints."""
    processes = [forked.start("-c", CREATE, number, name, cwd=folder, stdin=subprocess.PIPE) for number in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in processes]


def test_every_process_takes_the_next_free_name(tmp_path):
    names = race(tmp_path, 8)
    assert sorted(names) == ["a", *(f"a-{number}" for number in range(2, 9))]
    for number, name in enumerate(names):
        content = yaml.safe_load((tmp_path / "runs" / name / "sweep.yaml").read_text())
        assert content["base"]["seed"] == number, "each process wrote its own sweep"


def test_a_name_that_was_asked_for_goes_to_one_and_the_others_are_refused(tmp_path):
    messages = race(tmp_path, 3, "b")
    assert messages.count("b") == 1
    assert sum("another process has just created it; choose another name" in text for text in messages) == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"]


def test_the_command_goes_on_under_the_name_that_it_got(few, tmp_path):
    flags = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    flags += ["--usl_epochs", "0", "--le_epochs", "1", "--local"]
    processes = [forked.start(ROOT / "run_sweep.py", *flags, "--set", f"seed={seed}", cwd=tmp_path) for seed in (0, 1)]
    seeds = {}
    for seed, process in enumerate(processes):
        out, err = process.communicate()
        assert process.returncode == 0, err
        name = "ae_parallel-2" if "ae_parallel-2: 1 trial," in out else "ae_parallel"
        assert f"runs/{name}: 1 trial," in out
        assert f"tensorboard --logdir runs/{name}\n" in out
        assert f"runs/{name}/summary.md" in out
        assert (tmp_path / "runs" / name / f"seed={seed}" / "result.json").is_file()
        seeds[name] = seed
    assert set(seeds) == {"ae_parallel", "ae_parallel-2"}
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(seeds)


def test_a_name_taken_between_the_plan_and_the_start_is_passed_over(tmp_path):
    sweep = space.build({"name": "a"}, {}, "s.yaml")
    planned = Store.plan(tmp_path, None, "a")
    for taken in ("a", "a-2"):
        (tmp_path / taken).mkdir()
    (tmp_path / "a-3").symlink_to("nowhere")
    store = planned.create(sweep, {})
    assert store.root == tmp_path / "a-4"
    with store.lock():
        assert store.present()
    asked = Store.plan(tmp_path, "b", "a")
    (tmp_path / "b").touch()
    with pytest.raises(InputError, match="another process has just created it"):
        asked.create(sweep, {})


def test_a_parent_that_became_a_file_is_no_taken_name(tmp_path):
    planned = Store.plan(tmp_path / "runs", None, "a")
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match="Not a directory"):
        planned.create(space.build({"name": "a"}, {}, "s.yaml"), {})


def test_comparisons_take_the_next_free_name_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        store = make(tmp_path / name)
        store.root.rename(tmp_path / name / name)
    arguments = ["report", str(tmp_path / "x" / "x"), str(tmp_path / "y" / "y")]
    for expected in ("x+y", "x+y-2", "x+y-3"):
        assert cli.main(arguments) == 0
        assert f"x/{expected}/summary.md" in capsys.readouterr().out
    assert cli.main([*arguments, "-o", "given"]) == 0
    assert cli.main([*arguments, "-o", "given"]) == 2
    assert "given: exists" in capsys.readouterr().err


def test_names_follow_the_default(tmp_path):
    assert next(store.candidates("x", "a")) == "x"
    given = store.candidates(None, "a")
    assert [next(given) for _ in range(3)] == ["a", "a-2", "a-3"]
