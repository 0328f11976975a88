"""Small files in the format of CIFAR-10 and CIFAR-100, and a server from which they can be downloaded."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

NOWHERE = "http://127.0.0.1:9/"  # the discard port, which refuses connections at once


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, content: bytes) -> str:
    """Write a file and return its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def cifar_files(name: str, count: int = 4) -> tuple[dict[str, bytes], dict[str, object]]:
    """Return the files below the base folder, with `count` images in each, and their content.

    The content is images (N, 3, 32, 32) and labels of both splits.
    """
    fine = name == "cifar100"
    n_classes = 100 if fine else 10
    names = [f"class {i}" for i in range(n_classes)]
    batches = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    images, labels, files = {}, {}, {}
    for i, batch in enumerate([*batches, "test" if fine else "test_batch"]):
        images[batch] = noise(count, 3, 32, 32, seed=i)
        labels[batch] = [(7 * i + j) % n_classes for j in range(count)]
        entry = {"data": images[batch].reshape(count, -1), "fine_labels" if fine else "labels": labels[batch]}
        if fine:
            entry["coarse_labels"] = [0] * count
        files[batch] = pickle.dumps(entry)
    files["meta" if fine else "batches.meta"] = pickle.dumps({"fine_label_names" if fine else "label_names": names})
    test = "test" if fine else "test_batch"
    return files, {
        "classes": tuple(names),
        "train_images": np.concatenate([images[batch] for batch in batches]),
        "train_labels": np.concatenate([labels[batch] for batch in batches]),
        "test_images": images[test],
        "test_labels": labels[test],
    }


def expect_cifar(name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> str:
    """Patch torchvision to expect these files, and return their folder."""
    import torchvision

    kind = getattr(torchvision.datasets, name.upper())
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setattr(kind, "train_list", [[file, sums[file]] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, sums[file]] for file, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    monkeypatch.setattr(kind, "url", NOWHERE + kind.filename)
    return kind.base_folder


def cifar10_archive(files: dict[str, bytes], folder: str) -> bytes:
    """Return the archive that torchvision unpacks, with these files in `folder`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@contextmanager
def mirror(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torchvision download CIFAR-10 from a server on this machine, which sends `archive`."""
    from torchvision.datasets import CIFAR10

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
        yield
        server.shutdown()
