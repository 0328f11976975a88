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

Made by `python docs/search_space_reference.py` from the settings' own descriptions; do not edit.

```yaml
name: alpha                 # the results go to runs/alpha, or runs/alpha-2 if that exists
base:                       # any setting below; what is not named keeps its default
  usl_type: ae_parallel
  dataset: digits
search:                     # what is swept, per setting
  alpha: {grid: [1.0e-5, 1.0e-3, 0.1, 10]}
  seed: {grid: [0, 1, 2]}
baseline: true              # adds the random encoder (usl_epochs: 0), per seed
tune: {max_failures: 3}
resources: {cpu: 1, gpu: 0} # of each trial; GPUs, and trials in several processes: docs/nodes.md
```

## search

| distribution | means |
| --- | --- |
| `{grid: [a, b, …]}` | each value, with every other grid's; `[a, b]` is short for it, a plain value a grid of one |
| `{choice: [a, b, …]}` | one of the values, drawn `tune.num_samples` times |
| `{uniform: [low, high]}` | a real number between the bounds |
| `{loguniform: [low, high]}` | a real number whose logarithm is uniform |
| `{randint: [low, high]}` | a whole number, `high` excluded |

Repeats are a grid over `seed`. A draw is fixed by the setting's name and its number: all seeds and all points of a grid
share their draws, so that points can be compared in pairs, and a larger `num_samples` adds points without changing any.

`search` may be a list of sub-spaces, to sweep methods together with settings that only some of them have:

```yaml
search:
  - {usl_type: simclr, temperature: [0.1, 0.5], seed: [0, 1, 2]}
  - {usl_type: ae_parallel, alpha: [0.01, 0.1, 1], seed: [0, 1, 2]}
```

A setting swept where it has no effect is an error: its trials would repeat one another.

## Stopping early, and searching

`tune.scheduler: asha` and `median` stop trials while they pretrain, by `tune.metric` after each online evaluation.
They compare trials by pretraining epoch, so an evaluation must come before the last epoch (`probe_every`), and what
is swept must leave the evaluation alike. The random encoder is neither compared nor stopped, and no trial is stopped
at its last epoch. A stopped trial has the status `stopped`: a row in `results.csv` with its last metrics and no test
score. It is in no mean, and a resume does not run it again. A resume first reads the evaluations of all earlier trials
from their event files, so that it compares trials as the uninterrupted sweep would have done. A trial of which an
evaluation is missing there is no longer compared.

`tune.searcher: optuna` chooses the points: `tune.num_samples` of them, by Optuna's TPE over `choice`, `uniform`,
`loguniform` and `randint`. A grid is run as a whole, so that of `seed` is the only one: every point runs with every
seed, and counts by its mean of `tune.metric` at the end. A point of which a trial failed or was stopped ranks below
all others. What is proposed is written to `proposals.json` before it runs, and a resume goes on from there. With
`max_concurrent: 1` the proposals repeat exactly; otherwise they depend on which trial ends first.

```yaml
search:
  alpha: {loguniform: [1.0e-5, 10]}
  policy: {choice: [simclr, affine]}
  seed: {grid: [0, 1, 2]}
tune: {searcher: optuna, num_samples: 30, max_concurrent: 4}
```

Both need Ray, so not `--local`.

## In files and on the command line

A relative path (`folder:images`, `data_dir`) is taken from the directory in which the command is given.

On the command line every setting is a flag (`--alpha 0.1`), and `--set NAME=VALUE` overrides any setting, `baseline`,
`tune.NAME` and `resources.NAME`. A value replaces what the file sweeps, a list makes a grid: `--set 'seed=[0,1,2]'`.
The other distributions are for files only. What says a setting twice is refused: a flag given twice, or
`--set seed=0` beside `--seed 1`.

Values are read alike in files and on the command line:

- A number is decimal: `16`, `0.5`, `1e-5`. `010` is ten, as `seq -w` writes it. Every other notation is refused:
  `0x10`, `0o10`, `1_000`, `1:30`, digits of other scripts.
- A truth value is `true` or `false`, or one of YAML 1.1's other words for it: `yes`, `no`, `on`, `off`.
- `none` or `null` is no value, where that is valid. An empty value on the command line is refused.
- Text that YAML reads as a number, a date, a truth value or nothing needs quotes in a file: `name: "12"`.

## Datasets

`digits` and `digits_m` come with scikit-learn. torchvision's are downloaded once, to `data_dir`; without a network the
message names the files to copy there. `folder:PATH` has one of these forms:

| in PATH | is |
| --- | --- |
| `train/<class>/*`, `test/<class>/*` | both splits, with the same classes |
| these and `val/<class>/*` or `validation/<class>/*` | train, test and validation; `val_fraction: 0` leaves val out |
| `train/<class>/*` | train and test, divided 80/20, stratified, always alike |
| `train/*`, or images anywhere | images without labels: for `dataset` only, with another `probe_dataset` |

Without a val folder the validation split is taken from train (`val_fraction`). Pretraining sees train only. A folder
of images whose name looks like a split (`Test`, `valid`, `training`) is refused, with the name that is expected. So is
`val` without `test`, as there would be nothing to test on. `é` is the same class in both Unicode forms.

Images may have any size and mode and lie in folders of their own; the centre square is scaled to `image_size`, as RGB.
Every still-image format that the installed Pillow decodes is read, by the file's ending, in either case (`.jpg .jfif
.png .webp .avif .jp2 .tif …`); of an animation the first picture. EPS is not read, as Pillow would start Ghostscript
for it. A warning counts the other files, except hidden ones and `Thumbs.db`, `desktop.ini` and their like.

- Photographs are upright, as viewers show them: the orientation in the EXIF data is applied.
- Transparency is dropped: a transparent pixel has the colour that the file gives it, often black, as with torchvision's
  loader. To have another background, flatten the images first.

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
