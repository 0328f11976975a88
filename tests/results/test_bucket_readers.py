"""Two readers of one directory in a bucket fill the same local copy at once."""

import hashlib

import pytest

from raysweep import space
from raysweep.results.bucket import Bucket
from raysweep.results.mirror import Mirror
from raysweep.results.store import Store
from raysweep.space import Proposal
from tests.support import forked

READ = """
import hashlib, sys
from pathlib import Path
from raysweep.results.bucket import Bucket
from raysweep.results.mirror import Mirror
mirror = Mirror(Bucket(sys.argv[1]), Path(sys.argv[2]))
opened = set()

def note(event, given):
    if event == "open" and str(given[0]).startswith(sys.argv[2]) and given[1] and given[1][0] in "wax":
        opened.update(name for name in [Path(given[0]).name] if not name.startswith("."))

sys.addaudithook(note)
print("ready", flush=True)
for line in sys.stdin:
    mirror.pull()
    files = sorted(path for path in mirror.local.iterdir() if not path.name.startswith("."))
    print(*(f"{path.name}={hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files), *opened, flush=True)
"""
"""A program that makes the copy equal to the bucket at each line that it reads, and shows what is then in the copy.

It also shows each file that it opened for writing under its own name, so that a reader could see a part of it.
"""
ROUNDS, STALE, SIZE = 3, 300, 300_000


def test_two_readers_fill_one_copy_with_whole_files(uri, tmp_path):
    bucket, copy = Bucket(uri), tmp_path / "copy"
    contents = {f"{number}.bin": bytes([number]) * SIZE for number in range(12)}
    for name, content in contents.items():
        bucket.write(name, content)
    expected = [f"{name}={hashlib.sha256(content).hexdigest()}" for name, content in sorted(contents.items())]
    readers = [forked.start("-c", READ, uri, copy, cwd=tmp_path, stdin=forked.subprocess.PIPE) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "ready\n"
        copy.mkdir()
        for _ in range(ROUNDS):
            for path in copy.iterdir():
                path.unlink()
            for number in range(STALE):
                (copy / f"stale-{number}").touch()
            for reader in readers:
                reader.stdin.write("\n")
                reader.stdin.flush()
            for reader in readers:
                line = reader.stdout.readline()
                assert line, reader.stderr.read()
                assert line.split() == expected
            assert {path.name for path in copy.iterdir()} == set(contents), "no temporary file is left"
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


@pytest.mark.parametrize("is_stale", [False, True], ids=["wanted", "stale"])
def test_a_file_that_another_reader_removes_while_the_copy_is_listed_disturbs_no_reader(uri, tmp_path, is_stale):
    bucket, copy = Bucket(uri), tmp_path / "copy"
    for name in "ab":
        bucket.write(name, name.encode() * 9)
    mirror = Mirror(bucket, copy)
    mirror.pull()
    if is_stale:
        for name in "ab":
            bucket.remove(name)
    listed = []

    def wanted(name):
        """Want every file, and remove the first file of the copy's listing when the second one is listed."""
        listed.append(name)
        if len(listed) == (2 if is_stale else 4):
            (copy / listed[-2]).unlink()
        return True

    mirror.pull(wanted)
    assert {path.name for path in copy.iterdir()} == (set() if is_stale else {"a", "b"})


def test_objects_that_another_process_removes_or_replaces_after_the_listing_disturb_no_reader(uri, tmp_path):
    bucket, copy = Bucket(uri), tmp_path / "copy"
    for name in "abc":
        bucket.write(name, name.encode())
    mirror = Mirror(bucket, copy)
    mirror.pull()
    for name in "ab":
        bucket.write(name, b"newer")

    def wanted(name):
        """Want every file. When the first object of the listing is looked at, remove one object and replace another."""
        if "a" in bucket.files():
            bucket.remove("a")
            bucket.write("b", b"newer still")
        return True

    mirror.pull(wanted)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {"b": b"newer still", "c": b"c"}
    bucket.write("b", b"newest")
    mirror.push()
    assert bucket.read("b") == b"newest", "this process has not written the file"


def test_a_reader_uploads_the_report_alone(uri):
    sweep = space.build({"name": "a", "search": {"alpha": [0.1, 1]}}, {}, "file.yaml")
    driver = Store(uri).create(sweep, {})
    driver.record_proposals([])
    reader, _ = Store.open(uri, copies="reports")
    reader.pull()
    driver.record_proposals([Proposal(0, {"alpha": 0.1})])
    Store.open(uri, copies="reports")  # another reader of the same copy
    driver.record_proposals([Proposal(0, {"alpha": 0.1}), Proposal(0, {"alpha": 1})])
    expected = {name: driver.bucket.read(name) for name in driver.bucket.files()}
    (reader.root / "sweep.yaml").unlink()  # yet another reader replaces it
    (reader.root / "figures").mkdir()
    written = {"results.csv": b"trial\n", "figures/alpha.png": b"picture"}
    for name, content in written.items():
        (reader.root / name).write_bytes(content)
    reader.push()
    assert {name: driver.bucket.read(name) for name in driver.bucket.files()} == {**expected, **written}


REMOVE = """
import sys
from pathlib import Path
from raysweep.results.bucket import Bucket
from raysweep.results.mirror import Mirror
mirror, file = Mirror(Bucket(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[2], "a")
sys.addaudithook(lambda event, given: file.unlink(missing_ok=True) if event == "os.utime" else None)
mirror.pull()
"""
"""A program that fetches a file, which is removed just before it would get its modification time."""


def test_a_fetched_file_has_its_time_from_the_moment_it_appears(uri, tmp_path):
    Bucket(uri).write("a", b"content")
    process = forked.run("-c", REMOVE, uri, tmp_path / "copy", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["a"]
    assert (tmp_path / "copy" / "a").stat().st_mtime_ns == Bucket(uri).files()["a"].mtime_ns
