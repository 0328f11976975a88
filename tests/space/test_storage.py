"""The URL of the database of a searcher: paths become absolute, and no message or file shows a secret."""

import pytest

from raysweep import space
from raysweep.errors import InputError
from raysweep.space.storage import database_file

RAW = {"search": {"alpha": {"uniform": [0, 1]}}, "tune": {"searcher": "optuna", "num_samples": 3}}


def build(url):
    return space.build({**RAW, "tune": {**RAW["tune"], "storage": url}}, {}, "test")


def test_a_relative_path_belongs_to_the_working_directory_and_the_record_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = build("sqlite:///my studies.db")
    assert sweep.tune.storage == f"sqlite:///{tmp_path / 'my studies.db'}"
    assert database_file(sweep.tune.storage) == tmp_path / "my studies.db"
    monkeypatch.chdir("/")
    assert space.build(sweep.to_dict(), {}, "test").tune.storage == sweep.tune.storage


def test_a_server_stays_as_it_was_given():
    url = "postgresql+psycopg://db.example:5432/studies?sslmode=require"
    assert build(url).tune.storage == url
    assert database_file(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql://hunter2@host/db",
        "postgresql:me:hunter2@host/db",
        "mysql://host/db?password=hunter2",
        "mysql://host/db?charset=utf8&passwd=hunter2",
        "sqlite:///a.db?key=hunter2",
    ],
)
def test_a_secret_is_refused_and_not_quoted(url):
    with pytest.raises(InputError) as caught:
        build(url)
    assert str(caught.value).startswith("test: tune.storage: the URL must not ")
    assert "hunter2" not in str(caught.value)
