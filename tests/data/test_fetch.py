"""`raysweep fetch` downloads a dataset once and describes it; a fault is one line."""

import pytest
from PIL import Image

from tests.support.cifar import cifar10_archive, cifar_files, expect_cifar, mirror
from tests.support.commands import here


def test_a_dataset_is_downloaded_once_and_described(tmp_path, monkeypatch):
    files, _ = cifar_files("cifar10")
    archive = cifar10_archive(files, expect_cifar("cifar10", files, monkeypatch))
    with mirror(archive, monkeypatch):
        process = here("raysweep", "fetch", "cifar10", "digits", "--data_dir", tmp_path / "data", cwd=tmp_path)
    words = [
        "cifar10: 20 training and 4 test images, 3×32×32, 10 classes",
        "digits: 1,437 training and 360 test images, 1×8×8, 10 classes",
    ]
    assert (process.returncode, process.stdout.splitlines(), process.stderr) == (0, words, "")
    again = here("raysweep", "fetch", "cifar10", "--data_dir", tmp_path / "data", cwd=tmp_path)
    assert again.stdout.splitlines() == words[:1], "the server is gone, and the files are there"


def test_a_folder_is_described_as_a_sweep_reads_it(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name / "1.png")
    process = here("raysweep", "fetch", f"folder:{tmp_path / 'images'}", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "2 training and no test images, 3×32×32, without labels" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar"], "unknown dataset 'cifar', did you mean 'cifar10'?"),
        (["folder:nowhere"], "there is no folder"),
        (["folder:"], "has no path"),
        ([], "DATASET"),
    ],
)
def test_a_wrong_name_is_one_line(tmp_path, arguments, words):
    process = here("raysweep", "fetch", *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert words in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_without_a_network_the_message_says_what_to_copy(tmp_path, monkeypatch):
    files, _ = cifar_files("cifar10")
    expect_cifar("cifar10", files, monkeypatch)
    process = here("raysweep", "fetch", "cifar10", "--data_dir", tmp_path / "new", cwd=tmp_path, no_proxy="127.0.0.1")
    assert process.returncode == 2
    assert "cannot be downloaded" in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()
