"""A sweep treats its input as data: it runs no code from it, and the input does not decide where files go."""

import hashlib
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.results.store import Store
from raysweep.space import expansion

QUICK = ["--usl_type", "simclr", "--usl_epochs", "0", "--le_epochs", "1", "--local", "--name", "x"]
CALL = "!!python/object/apply:os.mkdir [pwned]"
PATHS = st.text(alphabet=["/", ".", "%", "\\", "\0", "\n", ",", "=", "a", "é", "\ud800", "~", " ", "2", "F", "+"])


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_the_harmful_pickle_of_these_tests_would_do_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "pwned").is_dir()


@pytest.mark.parametrize(
    "arguments",
    [
        ["space.yaml"],
        ["--set", f"alpha={CALL}"],
        ["--set", f"alpha=[{CALL}]"],
        ["--alpha", CALL],
        ["--alpha", "__import__('os').mkdir('pwned')"],
        ["--set", "policy=__import__('os').mkdir('pwned')"],
        ["--resume", "old"],
    ],
    ids=" ".join,
)
def test_no_search_space_and_no_setting_runs_code(run_sweep, tmp_path, arguments):
    (tmp_path / "space.yaml").write_text(f"base: {{alpha: {CALL}}}\n")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "sweep.yaml").write_text(f"name: x\nmade_by: {CALL}\n")
    process = run_sweep(*arguments)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "pwned").exists()


def test_no_checkpoint_runs_code(run_sweep, tmp_path):
    import torch

    first = run_sweep(*QUICK)
    assert first.returncode == 0, first.stderr
    trial = tmp_path / "runs" / "x" / "seed=0"
    (trial / "result.json").unlink()
    (trial / "checkpoints").mkdir()
    file = trial / "checkpoints" / "00000000.pt"
    torch.save({"state": Harmful()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()  # protects against damage, not against writers
    file.with_suffix(".json").write_text(f'{{"sha256": "{digest}", "epoch": 0}}')
    run_sweep("--resume", "runs/x", "--local")
    assert not list(tmp_path.rglob("pwned"))


@given(PATHS | st.text(max_size=300))
def test_a_trials_directory_lies_in_its_sweeps_whatever_its_settings(tmp_path_factory, text):
    name = expansion.trial_name({"dataset": f"folder:{text}", "seed": 0})
    assert name.isascii()
    assert name.isprintable()
    assert "/" not in name
    assert name.startswith("dataset=")
    assert len(name) <= expansion.MAX_NAME
    root = tmp_path_factory.getbasetemp()
    assert os.path.dirname(os.path.normpath(Store(root).trial(name))) == str(root)


@given(PATHS, PATHS)
def test_different_settings_have_different_directories(one, other):
    names = {expansion.trial_name({"dataset": text, "seed": 0}) for text in (one, other)}
    assert len(names) == len({one, other})


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_where_results_would_go_is_not_followed(run_sweep, tmp_path, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    for name in ("x", "simclr"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / target)
    refused = run_sweep(*QUICK)
    assert refused.returncode == 2
    assert "exists" in refused.stderr
    other = run_sweep(*QUICK[:-2])
    assert other.returncode == 0, other.stderr
    assert (tmp_path / "runs" / "simclr-2" / "results.csv").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "nowhere").exists()
