"""Bad input on the command line gives exit status 2 and one line about the fault; nothing starts or is left behind."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from raysweep.config import fingerprint
from tests.support import ROOT, forked
from tests.support.commands import here

pytestmark = pytest.mark.usefixtures("no_figures")

TINY = ["--usl_epochs", "1", "--le_epochs", "1", "--batch_size", "4", "--knn_k", "2", "--image_size", "8", "--local"]


@pytest.fixture
def small(few):
    """The arguments of a sweep on a few images without pretraining."""
    arguments = ["--usl_type", "simclr", "--usl_epochs", "0", "--le_epochs", "1", "--local"]
    return [*arguments, *(word for name, value in few.items() for word in (f"--{name}", str(value)))]


def make_folder(root, classes=("cat", "dog"), images=6, splits=("train", "test")):
    """Create an image folder of random pictures."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in classes:
            (root / split / label).mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 256, (9 + number, 11, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to run"),
        (["--alhpa", "1"], "did you mean --alpha?"),
        (["--exp_type", "alfa"], "invalid choice: 'alfa'"),
        (["--alpha"], "expected one argument"),
        (["--usl_type", "simclrr"], "usl_type"),
        (["--usl_type", "barlow twins"], "usl_type: must be 'ae_single', "),
        (["--usl_type", "barlow twins"], "'supervised', not 'barlow twins', did you mean 'barlow_twins'?"),
        (["--usl_type", "simclr+byol"], "usl_type: must be 'ae_single', "),
        (["--usl_type", "simclr+byol", "--name", "ok"], "usl_type: must be 'ae_single', "),
        (["--alpha", "-1"], "alpha"),
        (["--alpha", "nan"], "alpha"),
        (["--alpha", ".inf"], "alpha"),
        (["--strength", "-0.5"], "strength"),
        (["--usl_epochs", "-1"], "usl_epochs"),
        (["--usl_epochs", "ten"], "usl_epochs"),
        (["--temperature", "0"], "temperature"),
        (["--denoising", "perhaps"], "denoising"),
        (["--usl_type", "simclr", "--set", "alpha=[0.1, 1]"], "no effect"),
        (["--set", "alpha=[]"], "empty"),
        (["--set", "alpha=[1, 1.0]"], "twice"),
        (["--set", "alpha"], "NAME=VALUE"),
        (["--set", "alhpa=1"], "did you mean 'alpha'"),
        (["--set", "name=../../x"], "a sweep is named by --name"),
        (["--set", "output=/tmp"], "unknown setting; raysweep sweep --help lists all settings"),
        (["--set", "alpha=[1"], "not valid YAML at line 1"),
        (["none.yaml"], "none.yaml: no such file"),
        (["alpha"], "did you mean --exp_type alpha"),
        (["--exp_type", "alpha", "--output", "s3:/b/x"], "s3://BUCKET/PREFIX"),
        (["."], "is a directory"),
        (["none.yaml", "--exp_type", "alpha"], "not both"),
        (["--dataset", "digitz"], "did you mean 'digits'"),
        (["--dataset", "folder:none"], "none"),
        (["--dataset", "folder:"], "folder:"),
        (["--usl_type", "simclr", "--name", "../x"], "cannot name a directory"),
        (["--usl_type", "simclr", "--name", "/tmp/x"], "cannot name a directory"),
        (["--usl_type", "simclr", "--output", "/proc/nowhere"], "cannot write"),
        (["--usl_type", "simclr", "--output", "/dev/null"], "not a directory"),
        (["--batch_size", "1438", "--local"], "batch_size: 1438 is more than the 1437 training images"),
        (["--knn_k", "5000", "--local"], "knn_k: 5000"),
        (["--labels_per_class", "500", "--local"], "500"),
        (["--knn_grid", "[3]", "--local"], "knn_grid: each number must be one of 1, 2, 5, 10, 20, 50, 100, 200, not"),
        (["--set", "logistic=[true, false]"], "logistic cannot be swept (it changes no score); put it under base"),
        (["--resume", "nowhere"], "there is no sweep"),
        (["--resume", "nowhere", "--alpha", "1"], "there is no sweep"),
        (["--resume", "nowhere", "--name", "a"], "takes no --name"),
        (["--resume", "s3://bucket/a", "--sharpness", "2"], "a plugin of this sweep is given by --set sharpness=2"),
        (
            ["--resume=s3://bucket/a", "--sharpness=2"],
            "a setting of a plugin of this sweep is given by --set sharpness=2",
        ),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_refused(refused, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize("command", [["report"], ["evaluate"], ["sweep", "--resume"]], ids=" ".join)
def test_a_directory_that_is_no_sweep_is_refused_and_a_sweep_in_it_is_named(command, tmp_path):
    (tmp_path / "runs").mkdir()
    process = here("raysweep", *command, "runs", cwd=tmp_path)
    why = "no sweep (no sweep.yaml)"
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: runs: there is no ")
    assert process.stderr.endswith(f"{why}\n")
    for name in ("b", "a"):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "sweep.yaml").write_text("")
    process = here("raysweep", *command, "runs", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.endswith(f"{why}; give one of the sweeps in it, such as runs/a\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"serch: {}\n", "did you mean 'search'"),
        (b"base:\n  alpha: [1\nseed: 2\n", "line 3"),
        (b"base: {alpha: .nan}\n", "finite"),
        (b"search: {alpha: {grid: []}}\n", "empty"),
        (b"name: ../../x\n", "cannot name a directory"),
        (bytes(range(256)), "not a text file"),
        (b"", "must be a mapping"),
    ],
)
def test_bad_files_are_refused(refused, tmp_path, text, words):
    (tmp_path / "space.yaml").write_bytes(text)
    message = refused("space.yaml")
    assert "space.yaml" in message
    assert words in message


def test_a_name_that_exists_is_refused_and_nothing_in_it_changes(refused, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "sweep.yaml").write_text("precious")
    assert "exists" in refused("--usl_type", "simclr", "--name", "mine")
    assert (tmp_path / "runs" / "mine" / "sweep.yaml").read_text() == "precious"


def test_a_place_that_cannot_be_written_to_is_refused(refused, tmp_path):
    mount = tmp_path / "readonly"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs to mount a read-only file system")
    try:
        assert "cannot write" in refused("--usl_type", "simclr", "--output", mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_download_without_network_is_refused(refused):
    nowhere = "http://127.0.0.1:9"
    message = refused("--dataset", "cifar10", "--local", http_proxy=nowhere, https_proxy=nowhere)
    assert "cifar10" in message
    assert "cannot be downloaded" in message


def test_classes_that_differ_between_train_and_test_are_named(refused, tmp_path):
    root = make_folder(tmp_path / "images")
    (root / "test" / "dog").rename(root / "test" / "wolf")
    message = refused("--dataset", f"folder:{root}", *TINY)
    assert "dog" in message
    assert "wolf" in message


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_a_bad_image_is_named_and_skipped_only_when_asked_to(refused, run_sweep, tmp_path, content):
    root = make_folder(tmp_path / "images")
    bad = root / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60] if content is None else content)
    assert str(bad) in refused("--dataset", f"folder:{root}", *TINY)
    process = run_sweep("--dataset", f"folder:{root}", "--skip_bad_images", "True", *TINY)
    assert process.returncode == 0, process.stderr
    assert "3.png" in process.stderr


def test_images_of_any_kind_are_accepted(run_sweep, tmp_path):
    root = make_folder(tmp_path / "images")
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 13, 3), dtype=np.uint8))
    for mode in ("L", "RGBA", "P", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        rgb.convert(mode).save(root / "train" / "cat" / f"{mode}.{suffix}")
    Image.fromarray(rng.integers(0, 2**16, (5, 50), dtype=np.uint16)).save(root / "train" / "dog" / "deep.png")
    process = run_sweep("--dataset", f"folder:{root}", *TINY)
    assert process.returncode == 0, process.stderr


def test_images_without_classes_serve_for_pretraining_only(refused, run_sweep, tmp_path):
    root = make_folder(tmp_path / "images", splits=("all",))
    assert "no classes" in refused("--dataset", f"folder:{root}", *TINY)
    process = run_sweep("--dataset", f"folder:{root}", "--probe_dataset", "digits", *TINY)
    assert process.returncode == 0, process.stderr


def test_a_single_class_cannot_be_evaluated(refused, tmp_path):
    root = make_folder(tmp_path / "images", classes=("cat",))
    assert "single class" in refused("--dataset", f"folder:{root}", *TINY)


ONE_CLASS = """
import numpy as np
import raysweep


@raysweep.dataset(size=8, channels=1)
def odd(request):
    '''Two classes, but only one of them among the training images.'''
    images = np.random.RandomState(0).rand(40, 8, 8)
    labels = np.arange(40) % 2
    return raysweep.Dataset.from_numpy(images, labels * 0 + 1, images, labels, classes=("cat", "dog"))
"""


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--logistic", "true"], "odd has training images of a single class, 'dog'; an evaluation needs two"),
        (
            ["--usl_type", "supervised", "--probe_dataset", "digits"],
            "odd has training images of a single class, 1; usl_type: supervised needs two",
        ),
    ],
)
def test_training_images_of_a_single_class_are_refused_though_the_dataset_declares_two(refused, tmp_path, words, what):
    (tmp_path / "odd.py").write_text(ONE_CLASS)
    assert what in refused("--plugin", "odd.py", "--dataset", "odd", *TINY, *words)


def test_dry_run_prints_trials_and_settings_and_starts_nothing(run_sweep, tmp_path):
    arguments = ["--exp_type", "alpha", "--set", "alpha=[1e-5, 1]", "--knn_k", "9", "--dry-run"]
    process = run_sweep(*arguments)
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert lines[:3] == ["name: alpha", "base:", "  knn_k: 9"], "what differs from the defaults comes first"
    assert "# 9 trials:" in lines
    assert "alpha=1e-05,seed=2" in lines
    assert "# Plan: 6 trials with pretraining, 400 epochs each, 2,400 in all." in lines
    assert "# usl_epochs: 400 and le_epochs: 300 are defaults; fewer epochs take less time." in lines
    assert not [line for line in lines if line.startswith("  usl_lr")]
    full = run_sweep(*arguments, "--verbose").stdout.splitlines()
    assert "  usl_epochs: 400" in full
    assert "  max_failures: 3" in full
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "--usl_epochs", "1"], "an argument is empty"),
        (["--usl_type", "simclr", "--output", ""], "--output: the value is empty"),
        (["--usl_type", "simclr", "--address="], "--address: the value is empty"),
        (["--exp_type", "quickstart", " "], "an argument is empty"),
        (["--resume", ""], "--resume: the value is empty"),
        (["--", "--usl_type", "simclr"], "leave out the argument --"),
        (["a.yaml", "b.yaml"], "'b.yaml' is one argument too many"),
        (["--usl_type", "simclr", "--temperature", "-1e-3"], "command line: temperature: must be greater than"),
        (["--usl_type", "simclr", "--seed", "1e20"], "command line: seed: has too many digits"),
        (["--set", "SEED=3"], "did you mean 'seed'?"),
        (["--set", "baseline=random,pixels"], "several controls are a list: baseline=[random,pixels]"),
        (["--set", "temperature={uniform: [0.1, 1]}"], "temperature: expected a value or a list; write distributions"),
        (["--exp_type", "alpha", "--set", "alpha=[0.1,-1]"], "command line: alpha: must be greater than"),
        (
            ["--exp_type", "alpha", "--set", "tune.time_budget=0"],
            "command line: tune.time_budget: must be greater than",
        ),
        (["--exp_type", "alpha", "--set", "resources.cpu=0x1"], "command line: resources.cpu: "),
        (["--usl_type", "simclr", "--dataset", "folder:~nobody-of-this-name/x"], "there is no user"),
    ],
)
def test_a_fault_of_the_command_line_is_told_as_one(refused, arguments, words):
    assert words in refused(*arguments, "--dry-run")


def test_no_control_can_be_written_as_none(run_sweep):
    process = run_sweep("--exp_type", "alpha", "--set", "baseline=none", "--dry-run")
    assert process.returncode == 0, process
    assert "random" not in process.stdout


def test_a_dry_run_refuses_a_name_that_the_run_would_refuse(refused, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    taken = "--name mine: runs/mine exists; choose another name, or resume that sweep"
    for more in ([], ["--dry-run"]):
        assert taken in refused("--usl_type", "simclr", "--name", "mine", *more)
    assert "cannot write" in refused("--usl_type", "simclr", "--output", "/proc/nowhere", "--dry-run")


@pytest.mark.parametrize("name", ["alpha", "asha", "methods", "quickstart", "layerwise", "published/solo-byol"])
def test_a_dry_run_is_a_search_space_of_the_same_trials(run_sweep, tmp_path, name):
    printed = run_sweep("--exp_type", name, "--dry-run")
    (tmp_path / "again.yaml").write_text(printed.stdout.partition("\n# ")[0])
    for more in ([], ["--verbose"]):
        first, again = (run_sweep(*space, "--dry-run", *more) for space in (["--exp_type", name], ["again.yaml"]))
        assert again.returncode == 0, again.stderr
        assert first.stdout == again.stdout


def test_verbose_is_refused_where_it_would_do_nothing(refused):
    assert "--verbose is for --dry-run" in refused("--exp_type", "alpha", "--verbose")


def test_without_name_nothing_is_overwritten(run_sweep, tmp_path, small):
    for _ in range(2):
        process = run_sweep(*small)
        assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["simclr", "simclr-2"]


def test_the_resolved_sweep_is_a_search_space(run_sweep, tmp_path, small):
    first = run_sweep(*small, "--name", "a")
    assert first.returncode == 0, first.stderr
    again = run_sweep("runs/a/sweep.yaml", "--local", "--name", "b")
    assert again.returncode == 0, again.stderr
    results = [(tmp_path / "runs" / name / "seed=0" / "result.json").is_file() for name in "ab"]
    assert results == [True, True]


def test_other_commands(tmp_path):
    assert "did you mean 'sweep'" in here("raysweep", "sweeep", cwd=tmp_path).stderr
    assert here("raysweep", "report", "nowhere", cwd=tmp_path).returncode == 2
    assert "run a sweep" in forked.run("-m", "raysweep", cwd=tmp_path).stdout


def test_other_data_at_resume_is_refused_before_training(run_sweep, tmp_path):
    root = make_folder(tmp_path / "images")
    first = run_sweep("--dataset", f"folder:{root}", "--set", "seed=[0, 1]", "--name", "x", *TINY)
    assert first.returncode == 0, first.stderr
    (tmp_path / "runs" / "x" / "seed=1" / "result.json").unlink()
    Image.new("RGB", (9, 9)).save(root / "test" / "cat" / "0.png")
    again = run_sweep("--resume", "runs/x", "--local")
    assert again.returncode == 2
    assert "its images or labels changed after the sweep was started" in again.stderr
    assert again.stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "x" / "seed=1" / "result.json").exists()


def test_a_sweep_of_an_older_version_is_not_mixed_with_present_numbers_but_reported(run_sweep, tmp_path, small):
    assert run_sweep(*small, "--name", "x", "--set", "seed=[0, 1]").returncode == 0
    root = tmp_path / "runs" / "x"
    content = yaml.safe_load((root / "sweep.yaml").read_text())
    assert content["made_by"].pop("protocol") == 4
    (root / "sweep.yaml").write_text(yaml.safe_dump(content))
    for path in root.glob("*/result.json"):
        result = json.loads(path.read_text())
        result["protocol"]["version"] = 1
        result["fingerprint"] = fingerprint(result["protocol"])
        path.write_text(json.dumps(result))
    finished = run_sweep("--resume", "runs/x", "--local")
    assert finished.returncode == 0, finished.stderr
    assert "all 2 trials have finished" in finished.stdout
    assert here("raysweep", "report", "runs/x", cwd=tmp_path).returncode == 0

    (root / "seed=1" / "result.json").unlink()
    for more in ([], ["--set", "seed=[0, 1, 2]"], ["--dry-run"]):
        refused = run_sweep("--resume", "runs/x", "--local", *more)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "started with an older version of raysweep, whose numbers differ (protocol 1, now 4)" in refused.stderr
        assert not (root / "seed=1" / "result.json").exists()
    assert "1 of 2 trials have not finished" in here("raysweep", "report", "runs/x", cwd=tmp_path).stderr


def test_a_dry_run_of_a_resume_refuses_what_the_resume_refuses_and_changes_nothing(run_sweep, tmp_path, small):
    assert run_sweep(*small, "--name", "x", "--set", "seed=[0, 1]").returncode == 0
    one, two = (tmp_path / "runs" / "x" / f"seed={seed}" for seed in (0, 1))
    damaged = (one / "result.json").read_text()[:-9]
    (one / "result.json").write_text(damaged)
    planned = run_sweep("--resume", "runs/x", "--local", "--dry-run")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert planned.stdout.endswith("# 2 trials:\nseed=0\nseed=1\n")
    assert (one / "result.json").read_text() == damaged, "only the real resume puts it aside"

    for path, key, value, words in (
        (two / "result.json", "protocol", {"knn_k": 3}, "evaluated with knn_k 3"),
        (two / "result.json", "settings", {"le_epochs": 7}, "has le_epochs: 7, but the sweep says 1"),
        (one / "attempt.json", "settings", {"le_epochs": 7}, "has le_epochs: 7, but the sweep says 1"),
    ):
        before = path.read_text()
        content = json.loads(before)
        content[key] |= value
        if key == "protocol":
            content["fingerprint"] = fingerprint(content[key])
        path.write_text(json.dumps(content))
        for more in (["--dry-run"], []):
            refused = run_sweep("--resume", "runs/x", "--local", *more)
            assert (refused.returncode, refused.stdout) == (2, ""), refused
            assert words in refused.stderr
        path.write_text(before)
        (one / "result.json").write_text(damaged)


def test_a_results_directory_that_cannot_be_written_to_is_refused(run_sweep, tmp_path, small):
    process = run_sweep(*small, "--name", "x")
    assert process.returncode == 0, process.stderr
    place = str(tmp_path / "runs" / "x")
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", place, place], check=False).returncode != 0:
        pytest.skip("needs to mount a directory read-only")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        process = run_sweep("--resume", "runs/x", "--local")
    finally:
        subprocess.run(["umount", place], check=True)
    assert process.returncode == 2
    assert "Read-only file system" in process.stderr
    assert process.stderr.count("\n") == 1


SEARCH = "search: {alpha: {uniform: [0, 1]}, seed: [0, 1]}\ntune: {searcher: optuna, num_samples: 3}\n"


def test_what_needs_ray_is_refused_without_it(run_sweep, tmp_path):
    (tmp_path / "space.yaml").write_text(SEARCH)
    for arguments, words in (
        (["space.yaml"], "tune.searcher: optuna needs Ray"),
        (["--exp_type", "asha"], "tune.scheduler: asha needs Ray"),
        (["--alpha", "1", "--set", "resources.workers=2"], "but resources.workers is 2; set resources.workers=1"),
        (["--alpha", "1", "--set", "resources.workers=2", "--dry-run"], "but resources.workers is 2"),
    ):
        process = run_sweep(*arguments, "--local")
        assert process.returncode == 2
        assert words in process.stderr
        assert len(process.stderr.splitlines()) == 1


def test_a_plan_refuses_a_study_without_a_directory(run_sweep, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "space.yaml").write_text(SEARCH)
    given = ("space.yaml", "--set", "tune.storage=sqlite:///missing/x.db")
    for arguments in (given, (*given, "--dry-run")):
        process = run_sweep(*arguments)
        assert process.returncode == 2
        assert f"/missing/x.db: there is no directory '{tmp_path}/missing'" in process.stderr
        assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_optuna_is_an_extra(tmp_path):
    (tmp_path / "space.yaml").write_text(SEARCH)
    program = """
import sys
sys.modules["optuna"] = None
from raysweep.cli import main
status = main(["sweep", "space.yaml"])
sys.exit(status if not {"torch", "ray"} & set(sys.modules) else 1)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "tune.searcher: optuna needs a package that is not installed: pip install 'optuna>=5'" in process.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_a_searcher_leaves_open(run_sweep, tmp_path):
    (tmp_path / "space.yaml").write_text(SEARCH)
    process = run_sweep("space.yaml", "--dry-run", "--set", "baseline=true")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-4:] == [
        "# 8 trials:",
        "random,seed=0",
        "random,seed=1",
        "# optuna proposes 3 points while the sweep runs, each with the seeds 0, 1.",
    ]
