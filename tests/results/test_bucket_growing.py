"""A sweep in a bucket on a real S3 server grows on another machine, which fetches the final states."""

import raysweep
from tests.results.test_bucket_evaluation import contents

SMALL = {"usl_type": "simclr", "le_epochs": 1, "probe_every": 1, "images_every": 0, "projector_images": 0}


def test_another_machine_continues_the_trials_of_a_sweep_in_a_bucket(s3, uri, few, no_figures, tmp_path, monkeypatch):
    space = {"base": {**few, **SMALL, "keep": "final_state"}, "search": {"usl_epochs": [1]}}
    raysweep.run(space, output=uri, name="s", local=True)
    shorter = {path: info for path, info in contents(s3, uri).items() if "/usl_epochs=1,seed=0/" in path}
    assert any(path.endswith("/final_state.pt") for path in shorter)

    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "other"))
    grown = raysweep.resume(f"{uri}/s", {**space, "search": {"usl_epochs": [1, 2]}}, local=True)
    alone = raysweep.run({**space, "search": {"usl_epochs": [2]}}, output=str(tmp_path), name="alone", local=True)
    longer, expected = (frame.set_index("trial").loc["usl_epochs=2,seed=0"] for frame in (grown.frame(), alone.frame()))
    for name in ("pretrain/loss", "linear/test_accuracy", "knn/test_accuracy"):
        assert longer[name] == expected[name]
    events = grown.curves("pretrain/loss")
    assert sorted(events[events["trial"] == "usl_epochs=2,seed=0"]["step"]) == [1, 2]
    result = s3.get_object(Bucket=bucket_of(uri), Key="some prefix/s/usl_epochs=2,seed=0/result.json")["Body"].read()
    assert b'"continues": "usl_epochs=1,seed=0"' in result
    assert shorter.items() <= contents(s3, uri).items()


def bucket_of(uri):
    """Return the name of the bucket of a URI."""
    return uri.partition("://")[2].partition("/")[0]
