"""A race of seeds in a bucket on a real S3 server is interrupted, and another machine resumes it."""

import json

import pytest

import raysweep
from raysweep import api
from raysweep.errors import SweepInterrupted
from raysweep.results.bucket import Bucket
from raysweep.results.store import Store
from tests.support.racing import SAME, Interrupting, content, race_of

LOCAL = api.RunOptions(local=True)

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    """The results directory of the race on a local disk, which ran to its end."""
    return api.run(race_of(few, most=4), output=str(tmp_path_factory.mktemp("race")), options=LOCAL).store.root


def use_another_machine(monkeypatch, tmp_path):
    """Give the process a disk without copies of the bucket."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "other"))


def test_another_machine_resumes_a_race_with_the_same_decisions(uri, few, undisturbed, tmp_path, monkeypatch):
    place = f"{uri}/race"
    with pytest.raises(SweepInterrupted):
        api.run(race_of(few, most=4), output=uri, options=LOCAL, progress=Interrupting("trial"))
    recorded = json.loads(Bucket(place).read("race.json"))
    assert len(recorded["rounds"]) == 1, "the round is in the bucket before its trials run"
    assert recorded["end"] == ""

    use_another_machine(monkeypatch, tmp_path)
    assert "The race has not ended; a resume continues it" in "".join(raysweep.open(place).conclusions())
    resumed = api.resume(place, options=LOCAL)
    assert resumed.sweep.race_end
    for name in SAME:
        assert content(resumed.store.root, name) == content(undisturbed, name), name
        assert Bucket(place).read(name) == (resumed.store.root / name).read_bytes(), name


def test_a_copy_that_is_older_than_the_bucket_decides_nothing(uri, few, undisturbed, tmp_path, monkeypatch):
    place = f"{uri}/race"
    with pytest.raises(SweepInterrupted):
        api.run(race_of(few, most=4), output=uri, options=LOCAL, progress=Interrupting("round"))
    first = Store(place).root
    stale = (first / "race.json").read_bytes()
    with monkeypatch.context() as patch:
        use_another_machine(patch, tmp_path)
        api.resume(place, options=LOCAL)
    assert (first / "race.json").read_bytes() == stale
    api.resume(place, options=LOCAL)
    for name in SAME:
        assert content(first, name) == content(undisturbed, name), name
