"""An evaluation of a sweep in a bucket on a real S3 server: another machine fetches the encoders."""

import shutil

import pytest
from moto.core import set_initial_no_auth_action_count

import raysweep
from raysweep.errors import InputError
from raysweep.results.credentials import resolve
from tests.support.commands import here

SMALL = {"usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0, "projector_images": 0}


def test_another_machine_evaluates_a_sweep_in_a_bucket(s3, uri, few, no_figures, tmp_path, monkeypatch):
    base = {**few, "knn_k": 20, **SMALL}
    sweep = raysweep.run({"base": base, "search": {"alpha": [0.1]}}, output=uri, name="s", local=True)
    files = {path: info for path, info in contents(s3, uri).items() if "/s/" in path}

    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "other"))
    process = here("raysweep", "evaluate", f"{uri}/s", "--set", "knn_k=[3,20]", "--local", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = raysweep.open(f"{uri}/s/evaluations/evaluation")
    frame = results.frame().set_index("trial")
    expected = sweep.frame().set_index("trial").loc["alpha=0.1,seed=0"]
    assert frame.loc["alpha=0.1,knn_k=20,seed=0", "linear/test_accuracy"] == expected["linear/test_accuracy"]
    assert results.encoder("alpha=0.1,knn_k=3,seed=0").feature_dim > 0
    assert files.items() <= contents(s3, uri).items()  # nothing of the sweep changed

    process = here("raysweep", "evaluate", f"{uri}/s", "--name", "evaluation", "--local", cwd=tmp_path)
    assert process.returncode == 2
    assert "exists; choose another name" in process.stderr
    one = raysweep.evaluate(f"{uri}/s/alpha=0.1,seed=0", output=uri, name="one", local=True)
    assert one.frame().set_index("trial").loc["alpha=0.1,seed=0", "fingerprint"] == expected["fingerprint"]


def test_images_that_changed_are_refused_for_one_encoder_of_a_sweep_in_a_bucket(
    uri, few, no_figures, tmp_path, monkeypatch
):
    images = tmp_path / "images"
    shutil.copytree(few["dataset"].removeprefix("folder:"), images)
    raysweep.run({"base": {**few, **SMALL, "dataset": f"folder:{images}"}}, output=uri, name="s", local=True)
    (images / "train" / "1" / "1.png").write_bytes((images / "train" / "2" / "2.png").read_bytes())
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "other"))
    process = here("raysweep", "evaluate", f"{uri}/s/seed=0", "--local", cwd=tmp_path)
    assert process.returncode == 2, process.stderr
    assert "its images or labels changed after the sweep was started" in process.stderr


def test_wrong_credentials_are_refused_at_once(s3, uri):
    with pytest.raises(InputError, match="are the address and the credentials right"):
        set_initial_no_auth_action_count(0)(raysweep.evaluate)(uri, local=True)


@pytest.mark.parametrize(
    ("uri", "path", "expected"),
    [
        ("s3://b/x/y?region=r", "../../a", "s3://b/a?region=r"),
        ("s3://b/x", "..", "s3://b"),
        ("s3://b?region=r", "..", "s3://b?region=r"),
        ("s3://b/x", "../../a", "s3://b/a"),
    ],
)
def test_a_relative_path_never_leads_out_of_the_bucket(uri, path, expected):
    assert resolve(uri, path) == expected


def contents(s3, uri):
    """Return the ETag of every object in the bucket, by its key."""
    bucket = uri.partition("://")[2].partition("/")[0]
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: entry["ETag"] for entry in listed}
