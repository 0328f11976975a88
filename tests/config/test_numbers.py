"""Numbers, names and other text are read as the user meant them, and a flag that is given twice is refused."""

import re
import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep import cli, space
from raysweep.config import SETTINGS
from raysweep.space import checking, reading
from tests.support.commands import here

MANY = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
REFUSED = "refused"
ASCII = st.characters(codec="ascii")


def dry(capsys, *arguments):
    """Return what the command would run, as plain data, or its one line on standard error."""
    status = cli.main(["sweep", *map(str, arguments), "--dry-run", "--verbose"])
    out, err = capsys.readouterr()
    if status == 0:
        return yaml.load(out.partition("\n# ")[0], yaml.CSafeLoader)  # written in C, so faster
    assert status == 2
    assert out == ""
    assert re.fullmatch("error: [^\n]+\n", err)
    return err


def ways(tmp_path, capsys, name, text):
    """Return a setting's value, or the error, for `text` in each place on the command line and in a file."""
    path = tmp_path / "space.yaml"
    outcomes = []

    def file(content):
        path.write_text(content)
        return path

    for arguments, grid in (
        ([f"--{name}={text}"], False),
        (["--set", f"{name}={text}"], False),
        ([f"--{name}=[{text}]"], True),
        (["--set", f"{name}=[{text}]"], True),
        ([lambda: file(f"base: {{{name}: {text}}}\n")], False),
        ([lambda: file(f"search: {{{name}: [{text}]}}\n")], True),
        ([lambda: file(f"search:\n- {name}:\n    choice:\n    - {text}\n")], None),
        ([lambda: file(f"base: {{{name}: '{text}'}}\n")], False),
    ):
        outcome = dry(capsys, *[argument() if callable(argument) else argument for argument in arguments])
        if isinstance(outcome, str):
            outcomes.append(outcome)
        elif grid is False:
            outcomes.append(outcome["base"][name])
        else:
            (value,) = outcome["search"][0][name]["grid" if grid else "choice"]
            outcomes.append(value)
    return outcomes


@given(st.integers(0, 2**31 - 1), st.integers(0, 5), st.sampled_from(["", "+"]), st.sampled_from(["", ".", ".0", "e0"]))
@MANY
def test_a_whole_number_is_decimal_wherever_it_stands(tmp_path, capsys, number, zeros, sign, ending):
    values = ways(tmp_path, capsys, "seed", f"{sign}{'0' * zeros}{number}{ending}")
    assert values == [number] * len(values)
    assert all(type(value) is int for value in values)


@given(
    st.floats(min_value=0, allow_infinity=False).map(repr)
    | st.from_regex(
        r"(0{0,3}[0-9]{1,4}(\.[0-9]{0,4})?|\.[0-9]{1,4})([eE][+-]?0?[0-9]{1,2})?", fullmatch=True, alphabet=ASCII
    ).map(lambda text: "".join({c: str(int(c)) for c in string.digits}.get(c, c) for c in text))
)
@MANY
def test_a_real_number_is_decimal_wherever_it_stands(tmp_path, capsys, text):
    values = ways(tmp_path, capsys, "alpha", text)
    assert values == [float(text)] * len(values)


OTHER_NOTATIONS = [
    "1:30", "1:30.5", "12:30:00", "190:20:30", "0x10", "0X1f", "-0x10", "0o10", "0O7", "0b1", "0b", "1_000", "1__0",
    "5_", "_5", "1_0.5", "1e5_0", "٣", "５", "²", "1٣", "1 000", "1.000.000", "1e", "e5", "5#a", "5%", "½", "1/2",
    "0x1p3", "1d3", "5j", "+-5", "1e5e5", ".", "+", "1.5.", "ten", "infinity", "nan", "y", "n",
]  # fmt: skip


@pytest.mark.parametrize("text", OTHER_NOTATIONS)
def test_other_notations_are_refused_wherever_they_stand(tmp_path, capsys, text):
    name = "seed" if len(text) % 2 else "alpha"  # testing both kinds of number would take too long
    for message in ways(tmp_path, capsys, name, text):
        assert isinstance(message, str), message
        assert name in message
        if re.search(r"\d", text):
            assert "must be a number in decimal, such as 16, 0.5 or 1e-3" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".inf", "finite"),
        ("-.inf", "finite"),
        (".nan", "finite"),
        ("1e400", "finite"),
        ("9" * 400, "finite"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("yes", "number"),
        ("1.5", "integer"),
        ("1e-5", "integer"),
        ("-1", "greater than or equal to 0"),
        ("2147483648", "less than or equal to 2147483647"),
    ],
)
def test_what_is_no_whole_number_in_range_is_refused_in_words(tmp_path, capsys, text, words):
    *plain, quoted = ways(tmp_path, capsys, "seed", text)
    for message in plain:
        assert words in message
    assert quoted.startswith("error: ")


@pytest.mark.parametrize("text", ["-0", "-0.0", "-.0e3", "+0"])
def test_zero_has_no_sign(tmp_path, capsys, text):
    """A sign on zero would give one point two names."""
    values = ways(tmp_path, capsys, "alpha", text)
    assert [str(value) for value in values] == ["0.0"] * len(values)


def test_a_loop_over_seq_w_runs_the_seeds_it_counts(capsys):
    seeds = [dry(capsys, "--seed", f"{number:03}")["base"]["seed"] for number in range(20)]
    assert seeds == list(range(20))


def test_lists_of_padded_numbers(tmp_path, capsys):
    path = tmp_path / "space.yaml"
    path.write_text("search: {seed: [008, 009, 010]}\n")
    for arguments in ([path], ["--seed", "[008, 009, 010]"], ["--set", "seed=[008,009,010]"]):
        assert dry(capsys, *arguments)["search"] == [{"seed": {"grid": [8, 9, 10]}}]
    path.write_text("search: {seed: {randint: [008, 010]}, alpha: {uniform: [00.5, 010]}}\n")
    assert dry(capsys, path)["search"] == [{"seed": {"randint": [8, 10]}, "alpha": {"uniform": [0.5, 10.0]}}]


@pytest.mark.parametrize("text", ["[8, 008]", "[8, 8.0]", "[10, '010']", "[1000, 1e3]", "[0, -0]"])
def test_one_number_written_in_two_ways_is_a_duplicate(tmp_path, capsys, text):
    path = tmp_path / "space.yaml"
    path.write_text(f"search: {{seed: {text}}}\n")
    for arguments in ([path], ["--seed", text], ["--set", f"seed={text}"]):
        assert "is listed twice" in dry(capsys, *arguments)


@pytest.mark.parametrize(
    ("section", "name", "text", "value"),
    [
        ("tune", "time_budget", "010", 10.0),
        ("tune", "time_budget", "1e3", 1000.0),
        ("tune", "time_budget", "1:30", REFUSED),
        ("tune", "time_budget", "0x10", REFUSED),
        ("tune", "max_failures", "008", 8),
        ("tune", "max_failures", "1_0", REFUSED),
        ("resources", "cpu", "0100", 100),
        ("resources", "cpu", "0o10", REFUSED),
        ("resources", "gpu", "00.5", 0.5),
        ("resources", "gpu", "1:30", REFUSED),
    ],
)
def test_tune_and_resources_are_read_alike(tmp_path, capsys, section, name, text, value):
    path = tmp_path / "space.yaml"
    path.write_text(f"{section}: {{{name}: {text}}}\n")
    for arguments in ([path], ["--usl_type", "simclr", "--set", f"{section}.{name}={text}"]):
        outcome = dry(capsys, *arguments)
        if value is REFUSED:
            assert f"{name}: must be a number in decimal" in outcome
            assert repr(text) in outcome
        else:
            assert outcome[section][name] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", "10.0"), ("1e-3", "0.001"), ("00.5", "0.5"), *((text, REFUSED) for text in OTHER_NOTATIONS[:24:2])],
)
def test_numbers_in_a_grid_of_probes_are_read_alike(tmp_path, capsys, text, value):
    path = tmp_path / "space.yaml"
    outcomes = []
    for bank in (f"{{lr: {text}}}", f"{{lr: [{text}]}}", f"{{lr: ['{text}']}}"):
        path.write_text(f"base:\n  probe_grid: {bank}\n")
        outcomes += [dry(capsys, path), dry(capsys, "--probe_grid", bank)]
    for one in outcomes:
        if value is REFUSED:
            assert "probe_grid" in one
        else:
            assert one["base"]["probe_grid"] == f"{{lr: [{value}]}}"


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "yes", "Yes", "on", "false", "no", "off"])
def test_words_for_truth_mean_the_same_everywhere(tmp_path, capsys, text):
    *plain, quoted = ways(tmp_path, capsys, "denoising", text)
    assert plain == [text.lower() in ("true", "yes", "on")] * len(plain)
    assert "expected true or false" in quoted


@pytest.mark.parametrize("text", ["y", "n", "1", "0", "tRue", "t", "maybe"])
def test_other_words_are_no_truth_value(tmp_path, capsys, text):
    assert all("expected true or false" in message for message in ways(tmp_path, capsys, "denoising", text))


@pytest.mark.parametrize("name", ["seed", "image_size", "dataset", "probe_dataset", "blur", "tune.metric"])
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_value_is_not_the_default(capsys, name, text):
    """An unset shell variable gives an empty value."""
    assert f"--set {name}: the value is empty" in dry(capsys, "--set", f"{name}={text}")
    if name in SETTINGS:
        assert f"--{name}: the value is empty" in dry(capsys, f"--{name}", text)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("12", "12"),
        ("010", "10"),
        ("009", "9"),
        ("1.5", "1.5"),
        ("1e5", "100000.0"),
        ("2024-01-01", "2024-01-01"),
        ("2024-02-30", "2024-02-30"),
        ("2024-01-01T10:00:00", "2024-01-01 10:00:00"),
        ("true", "True"),
        ("on", "True"),
        ("no", "False"),
        ("null", "nothing"),
        ("~", "nothing"),
        ("", "nothing"),
        (".inf", "inf"),
    ],
)
def test_a_name_that_yaml_reads_as_something_else_needs_quotes(tmp_path, capsys, text, given):
    path = tmp_path / "space.yaml"
    path.write_text(f"name: {text}\n")
    message = dry(capsys, path)
    assert "put it in quotes" in message
    assert given in message
    if text not in ("", "~", ".inf"):
        path.write_text(f'name: "{text.replace(":", ".")}"\n')
        assert dry(capsys, path)["name"] == text.replace(":", ".")


@pytest.mark.parametrize("text", ["0x10", "1_000", "0o7", "y", "n", "8-9", "1.2.3", "5e", "1e"])
def test_other_names_are_what_is_written(tmp_path, capsys, text):
    path = tmp_path / "space.yaml"
    path.write_text(f"name: {text}\n")
    assert dry(capsys, path)["name"] == text


@pytest.mark.parametrize("text", ["12", "010", "1e5", "on", "no", "2024-01-01", "2024-01-01 10:00:00"])
@pytest.mark.parametrize("place", ["dataset", "probe_dataset", "data_dir", "policy", "tune.metric"])
def test_other_text_that_yaml_reads_as_something_else_needs_quotes(tmp_path, capsys, text, place):
    path = tmp_path / "space.yaml"
    section, _, name = place.rpartition(".")
    path.write_text(f"{section or 'base'}: {{{name}: {text}}}\n")
    message = dry(capsys, path)
    assert f"{name}: must be a string" in message
    assert "put it in quotes" in message
    if place == "policy":
        path.write_text(f"base: {{policy: [simclr, {text}]}}\n")
        assert "put it in quotes" in dry(capsys, path)


ODD = ["009", "010", "1e5", "1E5", "1.e5", "12", "0x10", "1_000", "1:30", "2024-01-01", "true", "on", "y", "null", "~"]
CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")  # a text with NUL is refused
TEXTS = st.sampled_from(ODD) | st.from_regex(r"[-+.0-9eExob_:]{1,6}", fullmatch=True) | st.text(CHARACTERS, max_size=8)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    )
)
@settings(MANY, max_examples=200)
def test_what_is_written_is_read_back_exactly(value):
    text = space.to_yaml({"value": value})
    again = reading.parse_yaml(text, "file.yaml")
    assert again == {"value": value}
    assert repr(again) == repr({"value": value}).replace("-0.0", "0.0")
    assert repr(yaml.safe_load(text)) == repr({"value": value})  # another YAML 1.1 reader agrees


@given(
    st.sampled_from([text for text in ODD if checking.NAME.fullmatch(text)])
    | st.from_regex(r"[0-9][0-9eExob_.-]{0,5}", fullmatch=True).filter(str.isascii),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3, unique=True),
    st.floats(0, allow_infinity=False),
    st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
)
@MANY
def test_a_sweep_is_read_back_exactly(name, seeds, alpha, budget):
    raw = {"name": name, "base": {"alpha": alpha}, "search": {"seed": seeds}, "tune": {"time_budget": budget}}
    sweep = space.build(raw, {}, "file.yaml")
    again = space.build(reading.parse_yaml(space.to_yaml(sweep.to_dict()), "sweep.yaml"), {}, "sweep.yaml")
    assert (again.name, again.trials, again.tune) == (sweep.name, sweep.trials, sweep.tune)
    assert again.to_dict() == sweep.to_dict()


def test_a_sweep_with_a_number_for_a_name_is_gone_on_with(tmp_path, run_sweep):
    (tmp_path / "space.yaml").write_text('name: "009"\nbase: {usl_epochs: 0, le_epochs: 1, projector_images: 0}\n')
    first = run_sweep("space.yaml", "--seed", "08", "--local")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "runs" / "009" / "seed=8" / "result.json").is_file()
    again = run_sweep("--resume", "runs/009", "--local")
    assert again.returncode == 0, again.stderr
    assert "the trial has finished" in again.stdout


def test_seeds_may_be_drawn_at_random(capsys, tmp_path):
    (tmp_path / "space.yaml").write_text("search: {seed: {choice: [008, 8.0]}}\n")
    assert "is listed twice" in dry(capsys, tmp_path / "space.yaml")
    (tmp_path / "space.yaml").write_text("search: {seed: {randint: [008, 010]}}\ntune: {num_samples: 2}\n")
    assert dry(capsys, tmp_path / "space.yaml")["search"] == [{"seed": {"randint": [8, 10]}}]


FLAGS = ["--name", "--output", "--resume", "--address", *(f"--{name}" for name in SETTINGS)]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_of_sweep_is_given_once(capsys, flag):
    for first, second in (("1", "2"), ("runs", "runs")):
        message = dry(capsys, flag, first, f"{flag}={second}")
        assert message == f"error: {flag} is given twice, as {first!r} and {second!r}; give it once\n"


def test_a_search_space_is_given_once(capsys):
    message = dry(capsys, "--exp_type", "alpha", "--exp_type", "simclr")
    assert "--exp_type is given twice, as 'alpha' and 'simclr'" in message
    assert "t.yaml" in dry(capsys, "s.yaml", "t.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "seed=0", "--set", "seed=1"], "--set seed is given twice, as '0' and '1'"),
        (["--set", "seed=0", "--set", " seed =0"], "--set seed is given twice"),
        (["--set", "tune.mode=max", "--set", "tune.mode=max"], "--set tune.mode is given twice"),
        (["--set", "baseline=true", "--set", "baseline=false"], "--set baseline is given twice"),
        (["--set", "seed=0", "--seed", "3"], "give --set seed=0 or --seed 3, not both"),
        (["--seed", "[0, 1]", "--set", "seed=[2]"], "give --set seed=[2] or --seed [0, 1], not both"),
        (["--resume", "X", "--output", "Y"], "takes no --output"),
        (["--resume", "X", "--output", "runs"], "takes no --output"),
        (["--resume", "X", "--name", "Y"], "takes no --name"),
        (["--local", "--address", "host:1"], "takes no --address host:1"),
        (["--resume", "X", "--local", "--address", "host:1"], "takes no --address host:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_contradicts_itself_is_refused(tmp_path, run_sweep, arguments, words):
    process = run_sweep(*arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert words in process.stderr
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_flag_without_a_value_may_stand_twice(capsys):
    assert dry(capsys, "--seed", "1", "--local", "--local", "--dry-run")["base"]["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["report", "a", "b", "-o", "1", "-o", "2"], "-o/--output"),
        (["report", "a", "b", "-o", "1", "--output=2"], "-o/--output"),
        (["embed", "c", "i", "--layer", "trunk", "--layer", "embedding", "-o", "f.npz"], "--layer"),
        (["embed", "c", "i", "-o", "f.npz", "--batch_size", "1", "--batch_size", "2"], "--batch_size"),
        (["embed", "c", "i", "-o", "f.npz", "--output", "g.npz"], "-o/--output"),
        (["export", "c", "-o", "f.pt", "-o", "g.pt"], "-o/--output"),
        (["preview", "s.yaml", "-o", "f.png", "-o", "g.png"], "-o/--output"),
        (["preview", "s.yaml", "-o", "f.png", "--set", "seed=1", "--set", "seed=2"], "--set seed"),
    ],
    ids=" ".join,
)
def test_a_flag_of_any_other_command_is_given_once(tmp_path, arguments, flag):
    (tmp_path / "s.yaml").write_text("base: {}\n")
    process = here("raysweep/cli.py", *arguments, cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert f"{flag} is given twice, as " in process.stderr
    assert process.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize("text", ["0x10", "1_0", "1:30", "٣", "ten", "1.5", "1e400", "2024-01-01"])
def test_the_batch_size_of_embed_is_read_as_that_of_a_sweep(tmp_path, text):
    process = here("raysweep/cli.py", "embed", "c", "i", "-o", "f.npz", f"--batch_size={text}", cwd=tmp_path)
    assert process.returncode == 2
    assert re.fullmatch(f"error: argument --batch_size: must be a .*number.*, not '{text}'\n", process.stderr)
