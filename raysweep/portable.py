"""A trained encoder outside of its sweep: features of any images, and weights for other programs.

PyTorch is imported inside the functions, after the paths were checked, so that a wrong one is refused at once.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.config import make_settings
from raysweep.data import layout
from raysweep.data.dataset import Images
from raysweep.data.folders import ignoring, warn_of_ignored
from raysweep.data.pixels import decode
from raysweep.errors import Diverged, InputError
from raysweep.results.checkpoints import to_bytes
from raysweep.results.encoders import SavedEncoder, encoder_file, load_encoder, to_safetensors
from raysweep.system.files import irregular, replacing

FEATURES, WEIGHTS = (".npz",), (".safetensors", ".pt")
LAYERS = ("trunk", "embedding")
COPIED, NAMES = 2**22, 1000  # bytes, and paths, at a time
EXISTS = "exists; choose another name, or remove it"

ProgressCallback = Callable[[int, int], None]
"""Called with how many of how many images are done."""


def load(checkpoint: Path) -> Any:
    """The encoder of a checkpoint, on the CPU, in evaluation mode.

    Args:
        checkpoint: a trial's directory, its `encoder.safetensors`, or a training checkpoint.

    Raises:
        InputError: the file does not exist, is not a checkpoint, or has weights that do not fit its own description.
    """
    return build(load_encoder(checkpoint))


def build(saved: SavedEncoder) -> Any:
    """The encoder that a file describes, with its weights; raises InputError where the two do not fit."""
    check_fit(saved)
    encoder = without_weights(saved)
    encoder.load_state_dict(saved.weights)
    return encoder.eval()


def check_fit(saved: SavedEncoder) -> None:
    """Raise InputError unless the weights of a file fit the encoder that it describes."""
    import torch

    try:
        # On the meta device nothing is computed or allocated, so a damaged size does not fill the memory.
        with torch.device("meta"):
            needed = without_weights(saved).state_dict()
    except (RuntimeError, TypeError):  # the code of a plugin may need the values of its tensors
        needed = without_weights(saved).state_dict()
    for name in (*needed, *saved.weights):
        if name not in saved.weights:
            fault = f"{name} is missing"
        elif name not in needed:
            fault = f"{name} is not a weight of this encoder"
        elif saved.weights[name].shape != needed[name].shape:
            fault = f"{name} is {tuple(saved.weights[name].shape)} instead of {tuple(needed[name].shape)}"
        elif saved.weights[name].dtype != needed[name].dtype:
            fault = f"{name} is {saved.weights[name].dtype} instead of {needed[name].dtype}"
        else:
            continue
        raise InputError(
            f"{saved.file}: its weights do not fit a {saved.architecture} for {saved.channels}×{saved.image_size}×"
            f"{saved.image_size} images and embeddings of {saved.embedding_dim}: {fault}"
        )


def without_weights(saved: SavedEncoder) -> Any:
    """The encoder that a file describes, with new weights."""
    from raysweep.models.building import build_encoder

    size = {"embedding_dim": saved.embedding_dim, "usl_epochs": 0}  # some encoders cannot be trained
    settings = make_settings({**saved.arguments, "encoder": saved.architecture, **size}, str(saved.file))
    return build_encoder(settings, saved.channels, saved.image_size)


def export(checkpoint: Path, output: Path) -> dict[str, str]:
    """Write the weights of a checkpoint's encoder for other programs.

    Args:
        checkpoint: a trial's directory, its `encoder.safetensors`, or a training checkpoint.
        output: a new file. `.safetensors` carries the description too, in its header; `.pt` is the plain `state_dict`,
            which `torch.load(..., weights_only=True)` gives back.

    Returns:
        The description: texts, as a safetensors header wants them.

    Raises:
        InputError: `output` exists, has another ending or lies in no directory; or the checkpoint is missing or
            damaged.
    """
    check_output(output, WEIGHTS)
    encoder_file(checkpoint)
    saved = load_encoder(checkpoint)
    encoder = build(saved)
    description = {
        "architecture": saved.architecture,
        "channels": str(saved.channels),
        "image_size": str(saved.image_size),
        "embedding_dim": str(saved.embedding_dim),
        "trunk_dim": str(encoder.feature_dim),
    }
    weights = {name: weight.detach().contiguous() for name, weight in encoder.state_dict().items()}
    if output.suffix.lower() != ".safetensors":
        content = to_bytes(weights)
    elif saved.file.suffix == ".safetensors":
        content = saved.file.read_bytes()
    else:
        content = to_safetensors(weights, {**description, "arguments": dict(saved.arguments)})
    with new_file(output) as file:
        file.write(content)
    return description


def embed(
    checkpoint: Path,
    images: Path,
    output: Path,
    *,
    layer: str = "trunk",
    batch_size: int | None = None,
    skip_bad_images: bool = False,
    progress: ProgressCallback = lambda done, total: None,
) -> tuple[int, int]:
    """Write the features of images of any size and mode, converted as the images of a `folder:PATH` dataset are.

    Only one batch of images and features is in memory at a time. The encoder runs on a GPU if PyTorch sees one.

    Args:
        checkpoint: a trial's directory, its `encoder.safetensors`, or a training checkpoint.
        images: a folder, searched with all folders in it, or one image file.
        output: a new `.npz` with `features` (N, D) float32, `paths` (N,) relative to the folder, `layer`.
        layer: `trunk` or `embedding`.
        batch_size: number of images at a time. None means 500 images of 32×32, or fewer images if they are larger.
        skip_bad_images: leave out images that cannot be read, with a warning, instead of raising.
        progress: told after every batch.

    Returns:
        N and D.

    Raises:
        InputError: `output` exists, has another ending or lies in no directory; `batch_size` is below 1; the checkpoint
            is missing or damaged; an image cannot be read; or a feature is NaN or greater than 1e15.
    """
    assert layer in LAYERS
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: must be at least 1")
    check_output(output, FEATURES)
    encoder_file(checkpoint)
    folder, paths = find_images(images)
    encoder = load(checkpoint)
    import torch

    from raysweep.probes.features import batch_of, extract

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device)
    if batch_size is None:
        batch_size = batch_of(encoder.image_size)

    def extracted(pixels: Images) -> NDArray[np.float32]:
        batch = torch.from_numpy(pixels).to(device)
        try:
            features = extract(encoder, batch, torch.arange(len(batch), device=device), layer)
        except Diverged as fault:
            raise InputError(f"{checkpoint}: {fault}") from None
        numbers: NDArray[np.float32] = features.cpu().numpy()
        return numbers

    # The number of rows is at the beginning of the file, but it is known only after the last image.
    with new_file(output) as file, tempfile.TemporaryFile(dir=output.parent) as rows:
        kept: list[str] = []
        width = 0
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            pixels, good = decode(part, encoder.image_size, encoder.channels, skip_bad_images)
            if len(pixels):
                features = extracted(pixels)
                width = features.shape[1]
                rows.write(features.tobytes())
            kept += [str(path.relative_to(folder)) for path, is_good in zip(part, good, strict=True) if is_good]
            progress(min(start + batch_size, len(paths)), len(paths))
        if not kept:
            raise InputError(f"{images}: none of its {len(paths)} images can be read")
        rows.seek(0)
        text = np.dtype(f"U{max(map(len, kept))}")
        names = (np.array(kept[start : start + NAMES], text) for start in range(0, len(kept), NAMES))
        with zipfile.ZipFile(file, "w") as archive:
            blocks = iter(lambda: rows.read(COPIED), b"")
            add_array(archive, "features", np.dtype(np.float32), (len(kept), width), blocks)
            add_array(archive, "paths", text, (len(kept),), (block.tobytes() for block in names))
            add_array(archive, "layer", np.dtype(f"U{len(layer)}"), (), [np.array(layer).tobytes()])
    return len(kept), width


def find_images(images: Path) -> tuple[Path, list[Path]]:
    """A folder and the image files in it and below, or an image file's own folder and that file.

    Raises:
        InputError: there is no such path, or no image in it.
    """
    if not images.exists():
        raise InputError(f"{images}: no such folder or image")
    if not images.is_dir():
        kind = irregular(images)
        if kind is not None:
            raise InputError(f"{images}: is {kind}; give a folder of images, or one image")
        return images.parent, [images]
    ignored: list[Path] = []
    paths = list(layout.images_below(images, ignored))
    if not paths:
        raise InputError(f"{images}: has no images{ignoring(ignored)}")
    warn_of_ignored(str(images), ignored)
    return images, paths


def add_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[bytes]
) -> None:
    """Add an array to an .npz archive, block by block."""
    # The same date in every archive, so that equal content makes equal files.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(block)


def check_output(path: Path, endings: tuple[str, ...]) -> None:
    """Raises InputError unless a new file called `path`, with one of the endings, can be made."""
    if path.suffix.lower() not in endings:
        raise InputError(f"-o {path}: its name must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: there is no directory {str(path.parent)!r}")
    if path.exists() or path.is_symlink():
        raise InputError(f"-o {path}: {EXISTS}")


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that appears at `path` when the block ends. Until then, and if the block fails, `path` is absent.

    Raises:
        InputError: The file cannot be written, or another process has created `path` meanwhile.
    """
    try:
        with replacing(path, new=True) as file:
            yield file
    except FileExistsError as fault:
        raise InputError(f"-o {path}: {EXISTS}") from fault
    except OSError as fault:
        raise InputError(f"-o {path}: cannot be written: {fault.strerror or fault}") from fault
