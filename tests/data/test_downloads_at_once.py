"""Two processes that need the same dataset at the same moment; one of them can be killed."""

import signal
import subprocess

import pytest

from tests.support import forked

PROGRAM = """
import os, signal, sys
from pathlib import Path
from raysweep.data.named import fetch

FILES = ("set/a", "set/b", "set/c")
moved = []

def die(event, given):
    if event == "os.rename" and Path(given[1]).name in "abc":
        moved.append(given[1])
        if len(moved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

def make(root, download):
    if download:
        print("downloads", file=sys.__stdout__, flush=True)  # a download hides what torchvision prints
        sys.stdin.readline()
        (root / "set").mkdir()
        for file in FILES:
            (root / file).write_text(file)
    return [(root / file).read_text() for file in FILES]

if sys.argv[2] == "dies":
    sys.addaudithook(die)
print("starts", flush=True)
assert fetch("x", Path(sys.argv[1]), FILES, [], make) == list(FILES)
"""
"""A program that reads a dataset of three files, which a download writes after it has read a line.

If it "dies", it is killed when it moves the second file to its place.
"""


@pytest.fixture
def start(tmp_path):
    """Start a process that reads the dataset; it is killed at the end of the test."""
    started = []

    def begin(kind="lives"):
        process = forked.start("-c", PROGRAM, tmp_path / "data", kind, cwd=tmp_path, stdin=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == "starts\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def present(tmp_path):
    return sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*"))


def wait_for_words(process, tmp_path):
    """Wait until a process says that it waits for the download of another one."""
    words = f"waiting for another process that downloads a dataset into '{tmp_path / 'data'}'"
    assert any(words in line for line in process.stderr)


WHOLE = ["set", "set/a", "set/b", "set/c"]


def test_one_process_downloads_and_the_other_waits_and_reads(start, tmp_path):
    first = start()
    assert first.stdout.readline() == "downloads\n"
    second = start()
    wait_for_words(second, tmp_path)
    assert first.communicate() == ("", "")
    assert second.communicate()[0] == "", "it reads what the first one has downloaded"
    assert (first.returncode, second.returncode) == (0, 0)
    assert present(tmp_path) == WHOLE


def test_a_process_takes_over_the_download_of_a_killed_one(start, tmp_path):
    first = start()
    assert first.stdout.readline() == "downloads\n"
    second = start()
    wait_for_words(second, tmp_path)
    first.kill()
    assert second.communicate()[0] == "downloads\n"
    assert second.returncode == 0
    assert present(tmp_path) == WHOLE, "nothing of the killed process is left"


def test_files_of_a_process_that_was_killed_while_it_moved_them_are_completed(start, tmp_path):
    first = start("dies")
    assert first.communicate()[0] == "downloads\n"
    assert first.wait() == -signal.SIGKILL
    assert {"set", "set/a"} < set(present(tmp_path))
    assert "set/b" not in present(tmp_path)
    second = start()
    assert second.communicate() == ("downloads\n", "")
    assert second.returncode == 0
    assert present(tmp_path) == WHOLE
