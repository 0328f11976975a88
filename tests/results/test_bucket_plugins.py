"""A sweep with a plugin in a bucket on a real S3 server: another machine fetches the text of the plugin."""

import shutil

import raysweep
from raysweep import parts
from tests.support import ROOT
from tests.support.commands import here

SMALL = {"usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0}


def test_a_resume_from_another_machine_fetches_the_plugin(s3, uri, few, no_figures, tmp_path, monkeypatch):
    small = [word for name, value in {**few, **SMALL}.items() for word in ("--set", f"{name}={value}")]
    plugin = tmp_path / "my_loss.py"
    shutil.copy(ROOT / "examples" / plugin.name, plugin)
    words = ["--plugin", plugin, "--emb_loss", "cosine", "--set", "sharpness=[1.0]", *small]
    process = here("run_sweep.py", *words, "--local", "--output", uri, "--name", "p", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    text = plugin.read_text()
    plugin.unlink()

    other = tmp_path / "other"
    monkeypatch.setenv("RAYSWEEP_CACHE", str(other))  # another machine has neither the copy nor the file
    more = ["--resume", f"{uri}/p", "--set", "sharpness=[1.0, 2.0]", "--local"]
    process = here("run_sweep.py", *more, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "2 trials (1 new), 1 finished before" in process.stdout
    assert {path.read_text() for path in other.rglob("plugins/my_loss.py")} == {text}

    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "third"))
    assert "cosine" not in parts.loss
    results = raysweep.open(f"{uri}/p")
    assert list(results.frame()["sharpness"]) == [1.0, 2.0]
    assert results.encoder("sharpness=2.0,seed=0").feature_dim > 0
    plugin.write_text(text.replace("clamp_min(1e-8)", "clamp_min(1e-6)"))
    process = here("run_sweep.py", *more, cwd=tmp_path)
    assert process.returncode == 2
    assert "has changed since the sweep was started" in process.stderr
