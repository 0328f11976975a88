"""Help that a new user can follow: examples that run, and suggestions for names that other tools use."""

import re
import shlex

import pytest

from raysweep.preparation import shipped_spaces
from tests.support.commands import here


@pytest.fixture
def helped(monkeypatch, tmp_path):
    """A function that returns the help of a command at a number of columns."""

    def run(program, *arguments, columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        process = here(program, *arguments, "--help", cwd=tmp_path)
        assert (process.returncode, process.stderr) == (0, "")
        return process.stdout

    return run


@pytest.mark.parametrize("columns", [80, 120, 160])
def test_help_opens_with_examples_and_the_shipped_sweeps(helped, columns):
    for program, arguments in (("raysweep", []), ("raysweep", ["sweep"]), ("run_sweep.py", [])):
        text = helped(program, *arguments, columns=columns)
        top = text[: text.index("\noptions:")]
        assert top.count("--exp_type quickstart") == 1
        assert re.search(r"^examples:$", top, re.MULTILINE)
        assert all(re.search(rf"\b{name}\b", top) for name in shipped_spaces())
        command = "run_sweep.py" if program == "run_sweep.py" else "raysweep sweep"
        assert top.count(f"  {command} ") == 3
        assert max(map(len, top.splitlines())) <= columns
    assert "(24 trials)" in top
    settings = text[text.index("settings: Pretraining") :]
    assert "--usl_lr" in settings
    assert "settings: Evaluation" in settings


def test_the_examples_of_the_help_are_accepted(helped, run_sweep, tmp_path):
    (tmp_path / "SPACE.yaml").write_text("base: {usl_type: simclr}\nsearch: {temperature: [0.1, 0.5]}\n")
    examples = re.findall(r"^  run_sweep\.py (.*)$", helped("run_sweep.py", columns=160), re.MULTILINE)
    assert len(examples) == 3
    counts = []
    for example in examples:
        process = run_sweep(*dict.fromkeys([*shlex.split(example), "--dry-run"]))
        assert process.returncode == 0, process.stderr
        counts.append(int(re.search(r"^# (\d+) trials?:$", process.stdout, re.MULTILINE)[1]))
    assert counts == [35, 6, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--lr 0.1", "did you mean --usl_lr or --le_lr?"),
        ("--lr=0.1", "did you mean --usl_lr or --le_lr?"),
        ("--set lr=0.1", "did you mean 'usl_lr' or 'le_lr'?"),
        ("--epochs 3", "did you mean --usl_epochs or --le_epochs?"),
        ("--gpu 1", "did you mean --set resources.gpu=1?"),
        ("--gpu", "did you mean --set resources.gpu=VALUE?"),
        ("--num_gpus=2", "did you mean --set resources.gpu=2?"),
        ("--set gpu=1", "did you mean --set resources.gpu=1?"),
        ("--num_samples 8", "did you mean --set tune.num_samples=8?"),
        ("--scheduler asha", "did you mean --schedule or --set tune.scheduler=asha?"),
        ("--batch-size 8", "did you mean --batch_size?"),
        ("--set resource.gpu=1", "did you mean --set resources.gpu=1?"),
        ("--set baselines=true", "did you mean --set baseline=true?"),
        ("--set tune.schedule=asha", "tune: unknown key 'schedule', did you mean 'scheduler'?"),
        ("--baseline true", "did you mean --set baseline=true?"),
        ("--baseline", "did you mean --set baseline=VALUE?"),
        ("--resources.gpu=1", "did you mean --set resources.gpu=1?"),
        ("--resource.gpu 1", "did you mean --set resources.gpu=1?"),
        ("--seeds.most 10", "did you mean --set seeds.most=10?"),
        ("--tune.num_samples 5", "did you mean --set tune.num_samples=5?"),
        ("--alhpa 1", "did you mean --alpha?"),
        ("--quite-another 1", "; --help lists all arguments"),
        (f"--seed 0 {'1' * 300}", "--seed: one value expected, not 2"),
        (
            "--seed 0 1 2",
            "--seed: one value expected, not 3; for one trial with each value, write --set 'seed=[0,1,2]'",
        ),
        (
            "--seed 0,1,2",
            "--seed: one value expected, not 3; for one trial with each value, write --set 'seed=[0,1,2]'",
        ),
        (
            "--set seed=0,1",
            "--set seed: one value expected, not 2; for one trial with each value, write --set 'seed=[0,1]'",
        ),
        (
            "--set seed=0 1",
            "--set seed: one value expected, not 2; for one trial with each value, write --set 'seed=[0,1]'",
        ),
        ("--usl_type simclr,byol", "write --set 'usl_type=[simclr,byol]'"),
        ("--dataset birds", "did you mean 'folder:birds'?"),
        ("--optimizer adma", "must be 'adam', 'adamw', 'sgd' or 'lars', not 'adma'"),
    ],
)
def test_what_is_written_for_other_tools_is_answered_with_what_fits(run_sweep, tmp_path, arguments, words):
    (tmp_path / "birds").mkdir()
    process = run_sweep(*arguments.split())
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert words in process.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("evaluate runs/x --labels_per_class 1", "did you mean --set labels_per_class=1?"),
        ("evaluate runs/x --label-per-class=1", "did you mean --set labels_per_class=1?"),
        ("evaluate runs/x --finetune true", "did you mean --set finetune=true?"),
        ("evaluate runs/x --lr 0.1", "did you mean --set usl_lr=0.1 or --set le_lr=0.1?"),
        ("evaluate runs/x --dry_run", "did you mean --dry-run?"),
        ("preview s.yaml -o v.png --strength 1", "did you mean --set strength=1?"),
        ("report runs/x --strength 1", "unknown argument --strength; --help lists all arguments"),
        ("report runs/x --outptu y", "did you mean --output?"),
    ],
)
def test_a_setting_of_a_command_whose_settings_are_no_flags_is_given_with_set(tmp_path, arguments, words):
    process = here("raysweep", *arguments.split(), cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert words in process.stderr


def test_a_file_with_a_name_of_another_tool_is_answered_too(run_sweep, tmp_path):
    (tmp_path / "space.yaml").write_text("base: {lr: 0.1}\n")
    assert "base: unknown key 'lr', did you mean 'usl_lr' or 'le_lr'?" in run_sweep("space.yaml").stderr
    (tmp_path / "space.yaml").write_text("base: {plugins: [my_loss.py]}\n")
    assert "base: unknown key 'plugins'; plugins stands beside base, not in it" in run_sweep("space.yaml").stderr
    (tmp_path / "space.yaml").write_text("search: {epochs: [1, 2]}\n")
    assert "epochs: unknown setting, did you mean 'usl_epochs' or 'le_epochs'?" in run_sweep("space.yaml").stderr


@pytest.mark.parametrize("arguments", [["--seed", "1", "2"], ["2", "--seed", "1"]])
def test_a_file_whose_name_is_a_number_is_a_search_space(run_sweep, tmp_path, arguments):
    (tmp_path / "2").write_text("name: numbered\n")
    process = run_sweep(*arguments, "--dry-run")
    assert process.returncode == 0, process.stderr
    assert "numbered" in process.stdout


def test_another_scheduler_drops_what_only_the_scheduler_of_the_file_reads(run_sweep):
    for scheduler in ("fifo", "none", "median"):
        process = run_sweep("--exp_type", "asha", "--set", f"tune.scheduler={scheduler}", "--dry-run")
        assert process.returncode == 0, process.stderr
    kept = run_sweep("--exp_type", "asha", "--set", "tune.scheduler=asha", "--dry-run", "--verbose")
    assert "reduction_factor: 3" in kept.stdout
    given = run_sweep("--exp_type", "asha", "--set", "tune.scheduler=fifo", "--set", "tune.reduction_factor=2")
    assert "tune.reduction_factor: has no effect with tune.scheduler: fifo; it needs asha" in given.stderr


@pytest.mark.parametrize(
    ("search", "is_noted"),
    [
        ("[{alpha: [1, 10]}, {seed: [0, 1, 2]}]", True),
        ("[{seed: [0, 1]}, {usl_type: simclr}]", True),
        ("{alpha: [1, 10], seed: [0, 1, 2]}", False),
        ("{seed: [0, 1, 2]}", False),
        ("[{alpha: [1, 10]}, {seed: [0]}]", False),
        ("[{seed: [0, 1]}, {alpha: [1, 10], seed: [0, 1]}]", False),
        ("[{alpha: [1, 10]}, {usl_type: simclr, seed: [0, 1]}]", False),
    ],
)
def test_the_plan_says_if_seeds_stand_in_a_sub_space_of_their_own(run_sweep, tmp_path, search, is_noted):
    (tmp_path / "space.yaml").write_text(f"search: {search}\n")
    process = run_sweep("space.yaml", "--dry-run")
    assert process.returncode == 0, process.stderr
    assert ("\n# Only one point is repeated with several seeds" in process.stdout) == is_noted
