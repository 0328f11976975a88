"""Trials that share a pretraining in a bucket."""

from raysweep.results.handout import FOLDER, Handout
from raysweep.results.store import Store
from tests.results.test_bucket import keys
from tests.support.commands import alone as run_alone

QUICK = ["--usl_epochs", "2", "--le_epochs", "2", "--probe_every", "1", "--images_every", "0"]


def data(few):
    """Return the settings of the few images as arguments."""
    return [word for name, value in few.items() for word in (f"--{name}", str(value))]


def test_the_state_is_handed_out_through_the_bucket_and_removed(s3, uri, few, tmp_path):
    process = run_alone(
        *QUICK, *data(few), "--set", "labels_per_class=[1, 2]", "--output", uri, "--name", "x", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    store, sweep = Store.open(f"{uri}/x", copies="reports")
    store.pull()
    results = [store.result(trial.name) for trial in sweep.trials]
    assert sorted(result.pretrained_by for result in results) == [
        "",
        next(r.trial for r in results if not r.pretrained_by),
    ]
    assert not [key for key in keys(s3, uri) if FOLDER in key]


def test_a_state_in_a_bucket_is_complete_with_its_hashes(s3, uri):
    store = Store(f"{uri}/x")
    handout = Handout(store, "0123456789abcdef")
    assert handout.covered(3) is None
    assert handout.read(3, "key") is None
    handout.write(3, {"epoch": 3}, b"records", ["key"])
    assert handout.covered(3) == {"key"}
    assert Handout(Store(f"{uri}/x"), "0123456789abcdef").read(3, "key") == ({"epoch": 3}, b"records")
    handout.write(3, {"epoch": 4}, b"others", ["key"])
    assert handout.read(3, "key") == ({"epoch": 3}, b"records"), "another trial may be reading it"
    handout.write(3, {"epoch": 5}, b"more", ["key", "another"])
    assert handout.covered(3) == {"key", "another"}
    assert handout.read(3, "another") == ({"epoch": 5}, b"more")
    assert handout.read(3, "key") == ({"epoch": 3}, b"records")
    s3.delete_object(Bucket=uri.split("/")[2], Key=f"some prefix/x/{FOLDER}/0123456789abcdef/00000003.json")
    assert handout.read(3, "key") is None
    handout.remove()
    assert keys(s3, uri) == []
