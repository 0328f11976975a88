"""Credentials in the environment can be hidden, and credentials in a URI are refused and not shown."""

import logging
import os

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from raysweep.errors import InputError, masked
from raysweep.results.bucket import Bucket
from raysweep.results.credentials import hidden_credentials

SECRET = "SECRETXYZ"
QUICK = ["--usl_type", "simclr", "--usl_epochs", "0", "--le_epochs", "1"]
PASSWORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1).map(
    lambda text: f"{SECRET}{text}"
)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on a local server that accepts any credentials, and the environment for reaching it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, f"{SECRET}_{name}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="results")
    yield client
    server.stop()


def test_a_bucket_that_is_opened_while_the_credentials_are_hidden_has_them(bucket):
    before = dict(os.environ)
    with hidden_credentials():
        assert not any(SECRET in value for value in os.environ.values())
        Bucket("s3://results/x").write("a", b"content")
    assert dict(os.environ) == before
    sent = bucket.get_object(Bucket="results", Key="x/a")
    assert sent["Body"].read() == b"content"


URIS = [
    "s3://AK:{}@bucket/x",
    "s3://{}@bucket/x",
    "s3://AK:a/{}@bucket/x",
    "s3:AK:{}@bucket/x",
    "s3:/AK:{}@bucket/x",
    "S3://AK:{}@bucket/x",
    "s3a://AK:{}@bucket/x",
    "s3n://AK:{}@bucket",
    "gs://AK:{}@bucket/x",
    "abfs://container:{}@account.dfs.core.windows.net/x",
    "abfss://container:{}@account/x",
    "unknown://AK:{}@bucket/x",
    "s3://bucket/x?access_key=AK&secret_key={}",
    "s3://bucket/x?{}",
    "s3://bucket/x?{}=",
    "s3://bucket/x?endpoint_override=AK:{}@host",
    "s3://bucket/x?endpoint_override=AK:{}%40host",
    "s3a://bucket/x?secret_key={}",
    "gs://bucket/x?access_token={}",
    "abfs://container@account.dfs.core.windows.net/x?sas_token={}",
    "abfs://container@account.dfs.core.windows.net/x?client_secret={}",
]
FLAGS = [["--output"], ["--dry-run", "--resume"], ["--ouput"], ["--local", "--output"]]


@pytest.mark.parametrize("uri", URIS)
def test_credentials_in_a_uri_are_refused_and_not_shown(run_sweep, tmp_path, uri):
    for *flags, last in FLAGS:
        process = run_sweep(*QUICK, *flags, f"{last}={uri.format(SECRET)}", AWS_ENDPOINT_URL="http://127.0.0.1:9")
        assert process.returncode == 2, flags
        assert process.stderr.count("\n") == 1, flags
        assert SECRET not in process.stdout + process.stderr, flags
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("address", ["http://AK:{}@host", "AK:{}@host:9000", "http://host?secret_key={}", "http://[{}"])
def test_credentials_in_the_address_of_a_service_are_refused_and_not_shown(run_sweep, name, address):
    process = run_sweep(*QUICK, "--output", "s3://bucket/x", **{name: address.format(SECRET)})
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert name in process.stderr
    if "[" not in address:  # an address with a bracket has no credentials
        assert SECRET not in process.stderr


@pytest.mark.parametrize("address", ["ray://user:SECRETXYZ@host:10001", "user:SECRETXYZ@host:6379"])
def test_credentials_in_the_address_of_a_cluster_are_refused_and_not_shown(run_sweep, address):
    for process in (run_sweep(*QUICK, "--address", address), run_sweep(*QUICK, RAY_ADDRESS=address)):
        assert (process.returncode, process.stderr.count("\n")) == (2, 1)
        assert "RAY_AUTH_TOKEN" in process.stderr
        assert SECRET not in process.stderr


def test_an_address_without_a_scheme_is_refused_instead_of_ignored(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL=localhost:9000: .*http://HOST:PORT"):
        Bucket("s3://bucket/x")


@pytest.mark.parametrize(
    "uri",
    [
        "abfs://container@account.dfs.core.windows.net/path",
        "gs://anonymous@bucket/x",
        "s3://bucket/run@2?region=eu-west-1&endpoint_override=host:9000&scheme=http",
        "gs://bucket/x?project_id=p",
    ],
)
def test_what_has_no_credentials_is_accepted(uri, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert Bucket(uri).uri == uri


@given(PASSWORDS, st.sampled_from(["s3", "s3a", "abfs", "http", "https", "ray", "anything"]))
def test_no_password_is_shown_whatever_it_is_made_of(password, scheme):
    for uri in (f"{scheme}://user:{password}@host/path", f"{scheme}://host/path?secret={password.replace('?', '')}"):
        assert SECRET not in masked(f"error: {uri}: is wrong")
        assert SECRET not in str(InputError(f"'{uri}', is wrong"))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/path?region=eu: there is no bucket 'bucket'",
        "asked at http://127.0.0.1:9000/x@y (AWS_ENDPOINT_URL)",
        "folder:/data/a:b@c: no such folder; alpha=0.1,dataset=folder%3A",
        "abfs://container@account.dfs.core.windows.net/path",
        "see https://docs.example.org/page#part.",
    ],
)
def test_other_text_is_shown_as_it_is(text):
    assert masked(text) == text
