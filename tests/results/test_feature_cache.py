"""The cache of features on disk: what it keeps, removes, notices and leaves alone."""

import os
import subprocess
import warnings

import numpy as np
import pytest

from raysweep.config import make_settings
from raysweep.results.feature_cache import FeatureCache, cache_of, cache_words
from tests.support import forked

SIZE = 32 + 10 * 25 * 4
"""The size in bytes of a file with the features of `numbers`."""


def numbers(seed=0):
    """Return features (10, 25), float32."""
    return np.random.default_rng(seed).normal(size=(10, 25)).astype(np.float32)


def key(number):
    return f"{number:064x}"


@pytest.fixture
def cache(tmp_path):
    """A cache with room for three files."""
    return FeatureCache(tmp_path / "features", 3 * SIZE)


def kept(cache):
    """Return the numbers of the keys that are in the cache."""
    return {int(path.stem, 16) for path in cache.directory.iterdir()}


def test_features_come_back_bit_for_bit(cache):
    assert cache.read(key(1), 10) is None
    assert cache.size() == 0
    cache.write(key(1), numbers(1))
    cache.write(key(2), numbers(2))
    for number in (1, 2):
        got = cache.read(key(number), 10)
        assert got.dtype == np.float32
        assert got.tobytes() == numbers(number).tobytes()
    assert cache.size() == 2 * SIZE
    transposed = numbers(3).T  # not contiguous
    cache.write(key(3), transposed)
    assert np.array_equal(cache.read(key(3), 25), transposed)


def test_the_least_recently_used_file_makes_room(cache):
    for number in (1, 2, 3):
        cache.write(key(number), numbers(number))
        os.utime(cache.directory / f"{key(number)}.features", (number, number))
    assert cache.read(key(1), 10) is not None  # it is now the newest
    cache.write(key(4), numbers(4))
    assert kept(cache) == {1, 3, 4}
    assert cache.size() == cache.most
    FeatureCache(cache.directory, SIZE).write(key(5), numbers(5))
    assert kept(cache) == {5}


def test_features_that_are_larger_than_the_bound_are_not_kept(cache):
    cache.write(key(1), numbers(1))
    cache.write(key(2), np.zeros((10, 1000), np.float32))
    cache.write(key(3), np.zeros((10, 0), np.float32))
    assert kept(cache) == {1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FeatureCache(cache.directory, SIZE // 2).read(key(1), 10) is None


def flipped(content):
    return content[:700] + bytes([content[700] ^ 1]) + content[701:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-40],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: content + b"\0" * 40,
        flipped,
        lambda content: content[::-1],
    ],
)
def test_a_damaged_file_is_noticed_and_replaced(cache, damage):
    cache.write(key(1), numbers(1))
    path = cache.directory / f"{key(1)}.features"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="was damaged, so its features were extracted again"):
        assert cache.read(key(1), 10) is None
    cache.write(key(1), numbers(1))
    assert np.array_equal(cache.read(key(1), 10), numbers(1))


def test_a_file_under_the_name_of_another_is_noticed(cache):
    cache.write(key(1), numbers(1))
    (cache.directory / f"{key(1)}.features").rename(cache.directory / f"{key(2)}.features")
    with pytest.warns(UserWarning, match="was damaged"):
        assert cache.read(key(2), 10) is None


def test_nothing_but_its_own_files_is_removed(cache, tmp_path):
    outside = tmp_path / "precious"
    outside.write_bytes(bytes(10 * SIZE))
    cache.directory.mkdir()
    others = [cache.directory / name for name in ("notes.txt", "a.features", f"{key(9)}.features.bak", f"{key(8)}")]
    for path in others:
        path.write_bytes(bytes(10 * SIZE))
    link, folder = cache.directory / f"{key(7)}.features", cache.directory / f"{key(6)}.features"
    link.symlink_to(outside)
    folder.mkdir()
    (folder / f"{key(5)}.features").write_bytes(bytes(10 * SIZE))
    for path in (*others, outside):
        os.utime(path, (1, 1))
    for number in range(100, 110):
        cache.write(key(number), numbers(number))
    assert cache.size() <= cache.most
    assert all(path.stat().st_size == 10 * SIZE for path in (*others, outside, folder / f"{key(5)}.features"))
    assert link.is_symlink()


def test_what_a_killed_process_was_writing_is_removed_later(cache):
    cache.write(key(1), numbers(1))
    new, old = (cache.directory / f".{key(2)}.features.{digits}" for digits in ("0123abcd", "456789ef"))
    for path in (new, old):
        path.write_bytes(bytes(SIZE // 2))
    os.utime(old, (1, 1))
    assert cache.size() == 2 * SIZE, "the bound counts them"
    cache.write(key(3), numbers(3))
    assert new.exists()
    assert not old.exists()


def test_a_place_that_cannot_be_used_only_gives_a_warning(tmp_path):
    (tmp_path / "features").write_text("a file, not a directory")
    cache = FeatureCache(tmp_path / "features", 10**6)
    with pytest.warns(UserWarning, match="features cannot be kept here: .*; see cache_gb"):
        cache.write(key(1), numbers(1))
    with pytest.warns(UserWarning, match="features cannot be kept here: Not a directory"):
        assert cache.read(key(1), 10) is None
    assert cache.size() == 0
    assert (tmp_path / "features").read_text() == "a file, not a directory"


def test_a_directory_that_is_deleted_at_any_time_comes_back(cache):
    cache.write(key(1), numbers(1))
    for path in cache.directory.iterdir():
        path.unlink()
    cache.directory.rmdir()
    assert cache.read(key(1), 10) is None
    cache.write(key(1), numbers(1))
    assert cache.read(key(1), 10) is not None


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    settings = make_settings({}, "x")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "mine"))
    assert cache_of(settings) == FeatureCache(tmp_path / "mine" / "features", 10**10)
    assert cache_words(settings) == ""
    cache_of(settings).write(key(1), numbers(1))
    place = tmp_path / "mine" / "features"
    assert cache_words(settings) == f"features cache: 0.1 MB of at most 10 GB in {place} (may be deleted)"
    monkeypatch.delenv("RAYSWEEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_of(settings).directory == tmp_path / "xdg" / "raysweep" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_of(settings).directory == tmp_path / "home" / ".cache" / "raysweep" / "features"
    assert cache_of(make_settings({"cache_gb": 0}, "x")) is None


PROCESS = """
import sys, warnings
from pathlib import Path
import numpy as np
from raysweep.results.feature_cache import FeatureCache
warnings.simplefilter("error")
cache, draws, hits = FeatureCache(Path(sys.argv[1]), int(sys.argv[2])), np.random.default_rng(int(sys.argv[3])), 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(400):
    number = int(draws.integers(6))
    features = np.random.default_rng(number).normal(size=(10, 25)).astype(np.float32)
    got = cache.read(f"{number:064x}", 10)
    if got is None:
        cache.write(f"{number:064x}", features)
    else:
        assert np.array_equal(got, features)
        hits += 1
print(hits)
"""


def test_processes_that_read_write_and_remove_at_the_same_time_do_not_harm_each_other(cache):
    arguments = ["-c", PROCESS, cache.directory, cache.most]
    options = {"cwd": cache.directory.parent, "stdin": subprocess.PIPE}
    processes = [forked.start(*arguments, seed, **options) for seed in range(3)]
    assert [process.stdout.readline() for process in processes] == 3 * ["ready\n"]
    for process in processes:  # at once
        process.stdin.write("\n")
        process.stdin.flush()
    hits = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(int(count) > 0 for count in hits)
    assert cache.size() <= cache.most
    assert all(cache.read(key(number), 10) is not None for number in kept(cache))
