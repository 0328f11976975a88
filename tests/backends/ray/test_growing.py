"""On Ray a longer trial continues the final state of a shorter one, also after kills."""

import pytest
import yaml

from tests.support.commands import alone, on_shared_ray, result, scores
from tests.support.gate import Gate
from tests.test_growing import points

pytestmark = pytest.mark.usefixtures("no_figures")

SHORT, LONG = 2, 4
STEPS = 4  # in an epoch
SHORTER = "seed=0"


def test_a_continued_trial_that_is_killed_twice_ends_as_the_same_trial_alone(tmp_path, few):
    gate = Gate(tmp_path, step=SHORT * STEPS)

    def write_space(name, epochs):
        base = {**few, "usl_type": "simclr", "usl_epochs": epochs, "le_epochs": 3, "probe_every": 2, "images_every": 0}
        base |= {"keep": "final_state", "schedule": "gated", "gate": str(gate.file)}
        space = {"name": "x", "plugins": [gate.plugin], "base": base, "search": {"seed": [0]}}
        (tmp_path / name).write_text(yaml.safe_dump(space))
        return tmp_path / name

    def kill():
        """Kill the first attempt before its first step, and the second one after its first checkpoint."""
        for steps in (2 * STEPS, 3 * STEPS + 2):
            gate.hold(steps)
            gate.kill()

    short = alone(write_space("short.yaml", SHORT), cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    root, file = tmp_path / "runs" / "x", write_space("long.yaml", LONG)
    with gate.meanwhile(kill):
        completed = on_shared_ray(file, "--resume", root, "--set", "tune.checkpoint_seconds=0", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert f"{root}: 2 trials (1 new), 1 continues from shorter ones, 1 finished before" in completed.stdout
    longer = f"usl_epochs={LONG},seed=0"
    alone(file, "--name", "alone", cwd=tmp_path)
    assert result(root, longer)["attempts"] == 3
    assert result(root, longer)["continues"] == SHORTER
    assert scores(root, longer) == scores(tmp_path / "runs" / "alone", SHORTER)
    assert points(root / longer) == points(tmp_path / "runs" / "alone" / SHORTER)
