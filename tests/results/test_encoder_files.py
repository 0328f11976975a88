"""`embed` and `export` are given files that hold odd tensors, or paths that are not files.

Both refuse them in one line and at once, and use memory in proportion to the file's size.
"""

import io
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from raysweep import cli, portable
from raysweep.errors import InputError
from raysweep.results.checkpoints import to_bytes
from raysweep.results.encoders import to_safetensors
from tests.support import forked
from tests.support.networks import make_encoder
from tests.support.odd_files import ODD

DESCRIPTION = {"architecture": "conv6", "channels": 1, "image_size": 8, "embedding_dim": 16}
WEIGHT = "head.weight"  # (16, 512)


def encoder():
    return make_encoder("conv6", 1, 8, 16, seed=0).state_dict()


def test_equal_encoders_give_equal_bytes(tmp_path):
    """The library writes the texts of the header in random order, so the order must be ours."""
    weights = encoder()
    files = {to_safetensors(weights, {**DESCRIPTION, "trunk_dim": 512, "arguments": {}}) for _ in range(20)}
    assert len(files) == 1
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(files.pop())
    loaded = load_file(path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert portable.load(path) is not None


def encoder_with(change):
    """Return an encoder file with one weight changed."""
    weights = encoder()
    return to_bytes({**DESCRIPTION, "encoder": {**weights, WEIGHT: change(weights[WEIGHT])}})


def checkpoint_with(change):
    """Return a training checkpoint with one weight changed."""
    weights = encoder()
    settings = {"image_size": 8, "embedding_dim": 16, "dataset": "digits"}
    return to_bytes({"settings": settings, "state": {"encoder": {**weights, WEIGHT: change(weights[WEIGHT])}}})


def sparse_row(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this is in beta
        return weight.to_sparse_csr()


def nested(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this is a prototype
        return torch.nested.nested_tensor([weight, weight[:3]])


def quantised(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this will be removed
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


REFUSED = {
    "meta": (lambda weight: weight.to("meta"), "a tensor without values"),
    "sparse": (lambda weight: weight.to_sparse(), "a sparse tensor"),
    "sparse rows": (sparse_row, "a sparse tensor"),
    "nested": (nested, "a nested tensor"),
    "quantised": (quantised, "quantised"),
    "complex": (lambda weight: weight.to(torch.complex64), "a complex tensor"),
    "a conjugate's imaginary part": (lambda weight: torch.complex(weight, weight).conj().imag, "a part of one"),
    "bool": (lambda weight: weight > 0, "torch.bool instead of torch.float32"),
    "bfloat16": (lambda weight: weight.bfloat16(), "torch.bfloat16 instead of torch.float32"),
    "double": (lambda weight: weight.double(), "torch.float64 instead of torch.float32"),
    "whole numbers": (lambda weight: weight.long(), "torch.int64 instead of torch.float32"),
    "transposed": (lambda weight: weight.T, "(512, 16) instead of (16, 512)"),
    "no dimension": (lambda weight: torch.tensor(1.0), "() instead of (16, 512)"),
    "empty": (lambda weight: weight[:0], "(0, 512) instead of (16, 512)"),
    "larger than the file": (lambda weight: torch.zeros(1).expand(16, 2**40), "share memory"),
    "a list": (lambda weight: [1.0], "not a mapping of tensors"),
    "none": (lambda weight: None, "not a mapping of tensors"),
    "a mapping": (lambda weight: {"weight": weight}, "not a mapping of tensors"),
}
FINE = {
    "a view of a larger one": lambda weight: torch.cat([weight, weight])[:16],
    "columns first": lambda weight: weight.T.contiguous().T,
    "a parameter": torch.nn.Parameter,
}


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """A function that runs `embed` and `export` on a checkpoint; yields the status and standard error of both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    Image.new("L", (8, 8), 77).save(tmp_path / "image.png")

    def run(checkpoint):
        capfd.readouterr()
        for arguments in (
            ["embed", checkpoint, "image.png", "-o", "f.npz"],
            ["export", checkpoint, "-o", "e.safetensors"],
        ):
            capfd.readouterr()  # discard the output from creating the file
            status = cli.main(arguments)
            yield status, capfd.readouterr().err

    return run


def refused(outcomes, name, words, folder):
    for status, message in outcomes:
        assert status == 2, message
        assert len(message.splitlines()) == 1, message
        assert name in message
        assert words in message
    assert not list(folder.glob("*.npz")) + list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("file_with", [encoder_with, checkpoint_with])
def test_odd_weights_are_refused(tmp_path, run, file_with, kind):
    change, words = REFUSED[kind]
    (tmp_path / "x.pt").write_bytes(file_with(change))
    refused(run("x.pt"), "x.pt", words, tmp_path)


@pytest.mark.parametrize("kind", FINE)
def test_weights_may_lie_in_memory_as_they_like(tmp_path, run, kind):
    (tmp_path / "x.pt").write_bytes(encoder_with(FINE[kind]))
    assert [status for status, _ in run("x.pt")] == [0, 0]
    exported = load_file(tmp_path / "e.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in encoder().items())


def test_weights_that_are_not_finite_are_exported_as_they_are_and_embed_nothing(tmp_path, run):
    (tmp_path / "x.pt").write_bytes(encoder_with(lambda weight: torch.full_like(weight, float("nan"))))
    (status, _), (exported, _) = run("x.pt")
    assert exported == 0
    assert load_file(tmp_path / "e.safetensors")[WEIGHT].isnan().all()
    assert status == 0, "the trunk's features do not depend on this weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": torch.tensor([1, 3])}, "is damaged"),
        ({"channels": True}, "is damaged"),
        ({"image_size": torch.tensor(8)}, "is damaged"),
        ({"image_size": 10**30}, "is damaged"),
        ({"embedding_dim": "16"}, "is damaged"),
        ({"embedding_dim": 65535}, "do not fit"),
        ({"architecture": ["conv6"]}, "unknown architecture"),
        ({"architecture": {}}, "unknown architecture"),
        ({"encoder": torch.zeros(3)}, "not a mapping of tensors"),
        ({"encoder": {}}, "is missing"),
        ({"encoder": {1: torch.zeros(3)}}, "do not fit"),
        ({"state": torch.zeros(3)}, "holds no encoder"),
        ({"state": []}, "holds no encoder"),
        ({"state": {"encoder": {}}, "settings": {}}, "holds no encoder"),
        ({"state": {"encoder": encoder()}, "settings": torch.zeros(3)}, "holds no encoder"),
        ({"state": {"encoder": encoder()}, "settings": {"image_size": 8}}, "holds no encoder"),
        ({"state": {"encoder": encoder()}, "settings": {"image_size": 0, "dataset": [], "embedding_dim": 16}}, ""),
        ({"state": {"encoder": encoder()}, "settings": {"image_size": 0, "dataset": "x", "embedding_dim": 16}}, ""),
        ({"state": {"encoder": encoder()}, "settings": DESCRIPTION, "images": 8}, "holds no encoder"),
        ({"state": {"encoder": encoder()}, "settings": DESCRIPTION, "images": [1]}, "holds no encoder"),
        ({"state": {"encoder": encoder()}, "settings": DESCRIPTION, "images": [2, 8]}, "is damaged"),
        ({"state": {"encoder": encoder()}, "settings": DESCRIPTION, "images": torch.tensor([1, 8])}, "is damaged"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_odd_descriptions_are_refused(tmp_path, run, changes, words):
    (tmp_path / "x.pt").write_bytes(to_bytes({**DESCRIPTION, "encoder": encoder(), **changes}))
    refused(run("x.pt"), "", words, tmp_path)


@pytest.mark.parametrize("arguments", [5, None, [], {"head": 5}, {"head": None}], ids=str)
def test_damaged_arguments_are_named(tmp_path, run, arguments):
    (tmp_path / "in").mkdir()
    content = to_safetensors(encoder(), {**DESCRIPTION, "arguments": arguments})
    (tmp_path / "in" / "x.safetensors").write_bytes(content)
    refused(run("in/x.safetensors"), "", "is damaged: its arguments are", tmp_path)


@pytest.mark.parametrize("name", ["image_size", "arguments"])
def test_a_deeply_nested_description_is_damage(tmp_path, run, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.safetensors").write_bytes(to_safetensors(encoder(), {**DESCRIPTION, name: "[" * 50_000}))
    refused(run("in/x.safetensors"), "", f"is damaged: its {name} is", tmp_path)


def test_a_pipe_in_place_of_an_encoder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "encoder.safetensors")
    Image.new("L", (8, 8), 77).save(tmp_path / "image.png")
    # A separate process can be killed if it hangs on the pipe.
    arguments = ["embed", "in/encoder.safetensors", "image.png", "-o", "f.npz"]
    process = forked.run("-m", "raysweep", *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert "is a named pipe, not a file" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def compressed(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as smaller:
        for member in plain.infolist():
            smaller.writestr(member.filename, plain.read(member))
    return buffer.getvalue()


def legacy(state):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: compressed(encoder_with(torch.zeros_like)), "it is compressed"),
        (lambda: legacy({**DESCRIPTION, "encoder": encoder()}), "not a file of PyTorch"),
        (lambda: pickle.dumps({**DESCRIPTION, "encoder": {}}), "not a file of PyTorch"),
        (lambda: save({name: weight.contiguous() for name, weight in encoder().items()}), "not a file of PyTorch"),
    ],
    ids=["compressed", "legacy", "pickle", "safetensors"],
)
def test_other_formats_are_refused(tmp_path, run, content, words):
    (tmp_path / "x.pt").write_bytes(content())
    refused(run("x.pt"), "x.pt", words, tmp_path)


LIMITED = """
import re, resource, sys
from pathlib import Path
from raysweep.__main__ import main
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2)
sys.exit(main(sys.argv[1:]))
"""


def test_a_small_file_does_not_fill_the_memory(tmp_path):
    """The process may take half a GiB more memory than it has with torch imported; the file holds 640 MiB of zeros."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        with archive.open("x/data/0", "w", force_zip64=True) as member:
            for _ in range(160):
                member.write(bytes(2**22))
    assert (tmp_path / "x.pt").stat().st_size < 2**23
    process = forked.run("-c", LIMITED, "export", "x.pt", "-o", "e.pt", cwd=tmp_path)
    assert process.returncode == 2, process.stderr
    assert (
        process.stderr
        == "error: x.pt: is not a checkpoint of raysweep: it is compressed, or holds the same bytes several times\n"
    )


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused_at_once(tmp_path, run, kind):
    ODD[kind](tmp_path / "x.pt")
    refused(run("x.pt"), "x.pt", "", tmp_path)
    (tmp_path / "trial").mkdir()
    ODD[kind](tmp_path / "trial" / "encoder.safetensors")
    refused(run("trial"), "trial: has no encoder.safetensors", "", tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in ("a directory", "a link to a directory")])
def test_an_image_that_is_no_file_is_refused_at_once(tmp_path, monkeypatch, capfd, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(encoder_with(torch.clone))
    ODD[kind](tmp_path / "image.png")
    assert cli.main(["embed", "x.pt", "image.png", "-o", "f.npz"]) == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert message.startswith("error: image.png: ")


def test_the_library_refuses_them_likewise(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(InputError, match="it is a named pipe, not a file"):
        portable.load(tmp_path / "x.pt")
