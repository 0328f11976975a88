"""Files that several processes write, read and remove at the same time."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from raysweep.system.files import make_directory, open_regular, replacing
from tests.support import PATIENCE

TURNS = 4000
REMOVE = """
import os, sys
while True:
    try:
        os.unlink(sys.argv[1])
        print(flush=True)
    except FileNotFoundError:
        pass
"""


@contextmanager
def removing(path):
    """Remove the file at `path` again and again in another process, which must do so during the block."""
    path.touch()
    with subprocess.Popen([sys.executable, "-c", REMOVE, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline(), "it has begun"
            yield
            assert process.poll() is None, "it has run all the time"
        finally:
            process.kill()
        assert len(process.stdout.readlines()) > 10, "it has removed what the block wrote"


def test_a_file_that_another_process_removes_can_be_written(tmp_path):
    path = tmp_path / "file"
    with removing(path):
        for _ in range(TURNS):
            with replacing(path, durable=False) as file:
                file.write(b"content")
    assert {file.name for file in tmp_path.iterdir()} <= {"file"}, "nothing was set aside"


def test_a_file_that_another_process_creates_is_no_broken_link(tmp_path):
    path, begun, ended, turns = tmp_path / "file", threading.Event(), threading.Event(), []

    def create_and_remove():
        while not ended.is_set():
            path.touch()
            path.unlink()
            turns.append(None)
            begun.set()

    thread = threading.Thread(target=create_and_remove)  # its turns end inside the functions that are tested
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        before = len(turns)
        for _ in range(TURNS):
            with suppress(FileNotFoundError), open_regular(path):
                pass
        assert len(turns) > before + 10, "the file came and went meanwhile"
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("has_links", [True, False])
def test_one_of_several_writers_that_create_a_new_file_at_once_succeeds(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "the file system has no hard links")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path, start = tmp_path / "file", threading.Barrier(8, timeout=PATIENCE)

    def create(number):
        try:
            with replacing(path, durable=False, new=True) as file:
                file.write(b"%d" % number)
                start.wait()
        except FileExistsError as fault:
            return str(fault.filename)
        return number

    for _ in range(50):
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(create, range(8)))
        (first,) = [result for result in results if isinstance(result, int)]
        assert path.read_bytes() == b"%d" % first
        assert results.count(str(path)) == 7
        assert list(tmp_path.iterdir()) == [path], "no temporary file remains"
        path.unlink()


def test_a_directory_that_cannot_be_created_leaves_no_parents(tmp_path):
    with pytest.raises(OSError, match="too long"):
        make_directory(tmp_path / "new" / "newer" / ("y" * 300))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="too long"):
        make_directory(tmp_path / "new" / "newer" / ("y" * 300))
    assert list((tmp_path / "new").iterdir()) == []
