"""The `sweep.yaml` of results directories that are large."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import yaml

from raysweep import space
from raysweep.errors import InputError
from raysweep.results.store import Store
from raysweep.results.sweep_file import check_version, history
from raysweep.space import reading
from tests.support.commands import here

ENCODERS = 1300
FOLDER = "../.." + 16 * f"/{199 * 'x'}"


def test_an_evaluation_of_many_encoders_is_read_again(tmp_path):
    search = {"strength": [0.25], "usl_lr": [0.000125], "temperature": [0.125], "seed": [0, 1]}
    trained = space.build({"base": {"usl_type": "simclr"}, "search": search}, {}, "space.yaml").trials
    encoders = [
        replace(trial, source=space.EncoderSource(f"{FOLDER}/{trial.name}/encoder.safetensors", 1, 8, 64 * str(number)))
        for number, trial in enumerate(trained)
    ]
    small = space.build_evaluation({}, {}, "command line", encoders)
    root = Store(tmp_path / "e").create(small, {"command": "x"}).root
    file = root / "sweep.yaml"
    before, start, entries = file.read_text().partition("  - trial: ")
    first, start, others = entries.partition("  - trial: ")
    copies = [f"{start}{first}".replace("seed=0", f"seed={number}") for number in range(1, ENCODERS)]
    file.write_text("".join([before, start, first, *copies, start, others]))
    assert len(file.read_text()) > reading.MAX_TEXT

    (made_by,) = history(root)
    assert made_by["command"] == "x"
    process = here("run_sweep.py", file, "--dry-run", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.endswith("has more than 4,194,304 characters; give a search-space file (YAML)\n")


def test_the_parser_of_long_files_reads_the_same_values():
    text = "a: 010\nb: 1e-5\nc: 1:30\nd: .inf\ne: 2024-02-29\nf: [1, 0.5, yes, null, '009']\ng: {h: é}\n"
    assert yaml.load(text, reading.LongLoader) == yaml.load(text, reading.Loader)


@pytest.mark.parametrize("begun", [1, 4, 5, 6])
@pytest.mark.parametrize("side", [28, 32])
def test_a_sweep_of_another_version_is_resumed_only_if_its_scores_are_the_same(tmp_path, begun, side):
    """Version 5 changed only the scores on images whose side is no power of two."""
    sweep = space.build({"base": {"dataset": "mnist", "image_size": side}}, {}, "space.yaml")
    root = Store(tmp_path / "s").create(sweep, {"protocol": begun}).root
    is_same = begun == 5 or (begun == 4 and side == 32)
    with nullcontext() if is_same else pytest.raises(InputError, match=f"protocol {begun}, now {4 + (side == 28)}"):
        check_version(sweep, root, "s")
