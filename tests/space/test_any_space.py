"""For any content of a search-space file, the command prints a checked sweep or one line, never a traceback or hang."""

import contextlib
import copy
import io
import time

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep import cli
from raysweep.config import SETTINGS
from raysweep.space.building import DISTRIBUTIONS

LONGEST = 2.0  # seconds of a core within which bad input is refused; milliseconds were measured
MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

VALID = {
    "name": "a",
    "base": {"usl_type": "ae_parallel", "usl_epochs": 3, "policy": "simclr+noise", "labels_per_class": None},
    "search": {"alpha": {"grid": [0.1, "1e-5"]}, "strength": {"uniform": [0, 1]}, "seed": [0, 1]},
    "baseline": True,
    "tune": {"num_samples": 2, "max_failures": 1},
    "resources": {"cpu": 1, "gpu": 0.5},
}

NAMES = st.sampled_from(
    [*SETTINGS, *DISTRIBUTIONS, *VALID, *VALID["tune"], "scheduler", "metric", "mode", "cpu", "gpu", "workers", "lr"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.sampled_from([10**400, -(10**299), 2**31 - 1]),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.datetimes(),
    st.binary(max_size=4),
    NAMES,
    st.sampled_from(
        ["simclr", "ae_single", "greedy", "none", "1e999", "0x10", "folder:", "folder:~nobody", "folder:/"]
    ),
    st.sampled_from(["folder:\0", "../../x", "lr=1+2,layer=trunk", "digits", "\u2028", "\x1b[2J", "a\nb", "\ud800"]),
)
KEYS = NAMES | st.text(max_size=4) | st.integers() | st.dates() | st.none() | st.booleans()
VALUES = st.recursive(
    SCALARS, lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(KEYS, deeper, max_size=3), max_leaves=8
)


def outcome(path, *arguments):
    """Run the real entry point, check its output, and return its exit status and the seconds of a core that it took."""
    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["sweep", str(path), "--dry-run", *arguments])
    took = time.process_time() - began
    if status == 0:
        assert err.getvalue() == ""
        assert " trial" in out.getvalue()
    else:
        assert status == 2
        assert out.getvalue() == ""
        assert err.getvalue().startswith("error: ")
        assert len(err.getvalue().splitlines()) == 1
        assert err.getvalue()[:-1].isprintable()
        assert len(err.getvalue()) < 3000
    return status, took


def places(value, path=()):
    """Yield the path to each value in nested mappings and lists."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def mutated(draw):
    """Draw a valid file in which some values are replaced, extended or removed."""
    raw = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in places(raw) if path]))
        holder = raw
        for key in above:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "add", "remove"]))
        if change == "replace":
            holder[last] = draw(VALUES)
        elif change == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(KEYS)] = draw(VALUES)
        else:
            holder.append(draw(VALUES))
        if not raw:
            break
    return raw


@given(st.text(max_size=200) | st.text(alphabet="abelphsrcgid:[]{},-&*!?|>%@`<'\"\n\t 01.e#~_", max_size=80))
@MANY
def test_any_text(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    outcome(path)


@given(st.binary(max_size=60))
@MANY
def test_any_bytes(tmp_path, content):
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    outcome(path)


@given(mutated())
@MANY
def test_a_valid_file_with_anything_in_its_places(tmp_path, raw):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    _, took = outcome(path)
    assert took < LONGEST


@given(NAMES, VALUES)
@MANY
def test_any_value_of_any_setting(tmp_path, name, value):
    path = tmp_path / "space.yaml"
    for raw in ({"base": {name: value}}, {"search": {name: value}}, {"search": {name: {"grid": [value]}}}):
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        _, took = outcome(path)
        assert took < LONGEST


@given(
    st.sampled_from([*SETTINGS, "baseline", "tune.metric", "resources.gpu"]), st.text(max_size=20) | VALUES.map(repr)
)
@MANY
def test_any_override(tmp_path, name, text):
    path = tmp_path / "space.yaml"
    path.write_text("search: {alpha: [0.1, 1], seed: [0, 1]}\n")
    outcome(path, "--set", f"{name}={text}")


def laughs(opening, closing, levels=30, width=9):
    """Return a few lines of nested YAML aliases that stand for `width ** levels` values."""
    lines = [f"a0: &a0 {opening}lol{closing}"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {opening}{before}{closing}")
    return "\n".join(lines) + "\n"


MERGES = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}" for level in range(1, 30)
)

HOSTILE = {
    "billion laughs": laughs("[", "]"),
    "billion laughs as a value": laughs("[", "]") + "base: {policy: *a29}\n",
    "billion laughs as merged mappings": MERGES,
    "a list that holds itself": "search: {alpha: {grid: &a [*a]}}",
    "a mapping that merges itself": "base: &a {<<: *a}",
    "an alias of nothing": "base: *none",
    "a deep list": "base: " + "[" * 5000 + "]" * 5000,
    "a deep mapping": "{a: " * 5000,
    "as deep as is read": "base: {policy: " + "[" * 150 + "]" * 150 + "}",
    "digits in hexadecimal": f"base: {{usl_epochs: 0x{'f' * 100_000}}}",
    "digits": f"base: {{usl_epochs: {'9' * 100_000}}}",
    "digits of base sixty": f"base: {{usl_epochs: 1{':1' * 50_000}}}",
    "a name of a megabyte": f"name: {'x' * 10**6}",
    "a value of a megabyte": f"base: {{usl_type: {'x' * 10**6}}}",
    "a key of a megabyte": f"'{'x' * 10**6}': 1",
    "code to run": "name: !!python/object/apply:os.system ['touch pwned']",
    "a tag of nobody": "base: {alpha: !unknown 3}",
    "two documents": "base: {}\n---\nbase: {}",
    "a set": "base: {alpha: !!set {1, 2}}",
    "an ordered mapping": "search: !!omap [alpha: [1]]",
    "sub-spaces that are too many together": (
        f"search: [&s {{seed: {list(range(300))}, alpha: {list(range(300))}}}, *s, *s, *s]"
    ),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(text)
    status, took = outcome("space.yaml")
    assert status == 2
    assert took < 10
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_what_never_ends_is_not_read_to_its_end():
    assert outcome("/dev/zero")[0] == 2
