"""Fixtures that several modules use: a real S3 server on this machine, and a new bucket in it."""

import logging
import uuid

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line for every request
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A client of the server, with the environment that a user would set."""
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    return boto3.client("s3")


@pytest.fixture
def uri(s3):
    name = f"b-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return f"s3://{name}/some prefix"
