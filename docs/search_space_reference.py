"""Writes docs/search-space.md from the settings' own descriptions: `python docs/search_space_reference.py`."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raysweep.config import METRICS, About, Settings, choices
from raysweep.space import Resources
from raysweep.space.model import Tune

HEAD = """# Search-space files

`python docs/search_space_reference.py` makes this page from the settings' own descriptions; do not edit it.

```yaml
name: alpha                 # results go to runs/alpha, or runs/alpha-2 if that exists
base:                       # any setting below; the others keep their defaults
  usl_type: ae_parallel
  dataset: digits
search:                     # the settings to vary
  alpha: {grid: [1.0e-5, 1.0e-3, 0.1, 10]}
  seed: {grid: [0, 1, 2]}
baseline: true              # adds the random encoder for each seed; see "Controls"
tune: {max_failures: 3}
resources: {cpu: 1, gpu: 0} # of each trial; for GPUs and several processes see docs/nodes.md
```

A *point* is one combination of the searched settings; its trials differ only in the seed. The *trunk* is the
encoder without its head, and the *fit split* is the training split without the validation images.

## search

| distribution | meaning |
| --- | --- |
| `{grid: [a, b, …]}` | each value, combined with every other grid (short: `[a, b]`, or one plain value) |
| `{choice: [a, b, …]}` | one of the values, drawn `tune.num_samples` times |
| `{uniform: [low, high]}` | a real number between the bounds |
| `{loguniform: [low, high]}` | a real number whose logarithm is uniform |
| `{randint: [low, high]}` | a whole number, `high` excluded |

Use a grid over `seed` for repeats. All seeds and all points of a grid share their draws, so points can be compared
in pairs. A larger `num_samples` adds points and changes none. A setting that is swept where it has no effect is an
error.

`search` may be a list of sub-spaces, so that methods have their own settings:

```yaml
search:
  - {usl_type: simclr, temperature: [0.1, 0.5], seed: [0, 1, 2]}
  - {usl_type: ae_parallel, alpha: [0.01, 0.1, 1], seed: [0, 1, 2]}
```

## Controls

`baseline` lists the controls: trials that show what a score is worth. `true` means `[random]`, and `false`, the
default, means none. A single name is allowed too. On the command line, write `--set 'baseline=[random,pixels]'`.

| control | what the probes read |
| --- | --- |
| `random` | the encoder with its initial weights (`usl_epochs: 0`) |
| `pixels` | the pixels of the image (`encoder: pixels`) |
| `pca` | `embedding_dim` principal components of the pixels, fitted on the pretraining images (`encoder: pca`) |
| `supervised` | the encoder, trained with the labels of `dataset` (`usl_type: supervised`) |

There is one control of a kind for each seed and each evaluation in the search: `pca,seed=0`, or `pca,knn_k=5,seed=0`
if the search varies `knn_k`. A control has the evaluation settings of the points, so its scores can be compared with
theirs. In `pixels` and `pca`, every `probe_layer` is the pixels or the components. Controls never count as the best
point, and no scheduler stops them.

`supervised` minimises the cross-entropy of a linear classifier on the features. It trains for the same `usl_epochs`,
with the same batch size, learning rate and optimiser, end to end also in layer-wise sweeps. It does not train the
head, so its embedding is a random projection of its features. It sees the images without augmentation, so a sweep of
`strength` has one supervised control. To train with labels on augmented images, search `usl_type: supervised`. A
dataset with pretraining images that lack labels is refused.

A resume with `--set 'baseline=[random,pixels]'` adds these controls to the sweep, and the earlier ones stay.

## Stopping early, and searching

`tune.scheduler: asha` and `median` stop trials during pretraining. They compare trials at the same epoch by
`tune.metric`, after each online evaluation. An evaluation must come before the last epoch (`probe_every`), and the
swept settings must not change the evaluation. Controls are not compared or stopped, and no trial stops at its
last epoch. A stopped trial has the status `stopped`, its last metrics in `results.csv` and no test score. It is
in no mean, and a resume does not run it again. A resume reads earlier evaluations from the event files, so it
compares trials as the uninterrupted sweep would, except trials with a missing evaluation.

`pretrain/loss` and its terms compare only points with one objective and one kind of views. A sweep that varies the
method, a parameter of a method, loss or policy, `strength`, `policy`, `batch_size`, `embedding_dim` or `layerwise` is
refused with such a `tune.metric`.

`tune.searcher: optuna` chooses `tune.num_samples` points by Optuna's TPE over `choice`, `uniform`, `loguniform` and
`randint`. The only grid is `seed`: every point runs with every seed and counts by its final mean of `tune.metric`.
A point with a failed or stopped trial ranks below all others. `proposals.json` records the points, and a resume
continues from it. Proposals repeat exactly only with `max_concurrent: 1`.

```yaml
search:
  alpha: {loguniform: [1.0e-5, 10]}
  policy: {choice: [simclr, affine]}
  seed: {grid: [0, 1, 2]}
tune: {searcher: optuna, num_samples: 30, max_concurrent: 4}
```

Schedulers and searchers need Ray, so they do not work with `--local`.

## In files and on the command line

Every setting is a flag (`--alpha 0.1`). `--set NAME=VALUE` overrides any setting, `baseline`, `tune.NAME` and
`resources.NAME`. A value replaces the file's sweep, and a list makes a grid: `--set 'seed=[0,1,2]'`. Other
distributions need a file. A setting that is given twice is refused (`--set seed=0` and `--seed 1`). Relative paths
start at the working directory.

- A number is decimal: `16`, `0.5`, `1e-5`; `010` is ten. Other notations are refused: `0x10`, `0o10`, `1_000`,
  `1:30`, digits of other scripts.
- A truth value is `true`, `false`, `yes`, `no`, `on` or `off`.
- `none` or `null` is no value, where that is valid. An empty value on the command line is refused.
- In a file, quote text that YAML reads as a number, a date, a truth value or nothing: `name: "12"`.

## Datasets

`digits` and `digits_m` come with scikit-learn. torchvision's datasets are downloaded once to `data_dir`; without a
network the message names the files to copy there. `folder:PATH` has one of these forms:

| in PATH | meaning |
| --- | --- |
| `train/<class>/*`, `test/<class>/*` | both splits, with the same classes |
| these and `val/<class>/*` or `validation/<class>/*` | train, test and validation; `val_fraction: 0` omits validation |
| `train/<class>/*` | train and test, divided 80/20, stratified, always alike |
| `train/*`, or images anywhere | images without labels, for `dataset` only; give another `probe_dataset` |

Without a validation folder `val_fraction` takes that split from train. Pretraining reads train only. Folders whose
name looks like a split (`Test`, `valid`, `training`) are refused, with the expected name, and so is `val` without
`test`. `é` is the same class in both Unicode forms.

Images may have any size and mode, and lie in subfolders. The centre square is scaled to `image_size`, as RGB.
raysweep reads every still-image format of the installed Pillow by the file's ending, in either case
(`.jpg .jfif .png .webp .avif .jp2 .tif …`), except EPS, and the first picture of an animation. A warning counts
other files, but not hidden ones, `Thumbs.db`, `desktop.ini` and the like. The EXIF orientation is applied.
Transparency is dropped: a transparent pixel has its colour in the file, often black. Flatten such images first for
another background.

`probe_dataset` takes the size and the channels of `dataset`.
"""


def type_of(field: FieldInfo) -> str:
    """A field's type and range in words."""
    kind: Any = field.annotation
    optional = ""
    if get_origin(kind) in (UnionType, Union):
        kind, optional = get_args(kind)[0], " or none"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind)) + optional
    words = {bool: "true, false", int: "whole number", float: "number", str: "text"}[kind]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[n]} {getattr(m, n):,}" for m in field.metadata for n in signs if hasattr(m, n)]
    return ", ".join([words, *bounds]) + optional


def default_of(field: FieldInfo) -> str:
    """A field's default as YAML writes it."""
    value = field.default
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def about(field: FieldInfo) -> About:
    """A field's description."""
    return next(item for item in field.metadata if isinstance(item, About))


def table(model: type[BaseModel], group: str | None = None) -> str:
    """The fields of a model, or of one group of them."""
    lines = ["| name | values | default | what it is | has an effect |", "| --- | --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        of = about(field)
        if group is None or of.group == group:
            when = of.effect.words + ("" if of.search else "; cannot be swept")
            lines.append(f"| `{name}` | {type_of(field)} | {default_of(field)} | {of.text} | {when} |")
    lines = lines if group else [line.rsplit("|", 2)[0] + "|" for line in lines]
    return "\n".join(lines)


def reference() -> str:
    """The whole page."""
    groups = dict.fromkeys(about(field).group for field in Settings.model_fields.values())
    parts = [HEAD, "## Settings", "With `usl_epochs: 0` no setting that only pretraining reads has an effect."]
    for group in groups:
        parts += [f"### {group}", table(Settings, group)]
    metrics = "\n".join(["| metric | what it is |", "| --- | --- |", *(f"| `{k}` | {v} |" for k, v in METRICS.items())])
    parts += ["## tune", table(Tune), "## resources", table(Resources)]
    parts += ["## Metrics", "Steps are epochs, each metric's own.", metrics]
    parts += [
        f"`tune.metric` may be {', '.join(f'`{name}`' for name in choices())}: nothing that has seen a test image."
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "search-space.md").write_text(reference(), encoding="utf-8")
