"""A file of TOML and the runs that it means."""

import itertools
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryless.errors import BadInput
from memoryless.experiments.sweep.grid import AXES, EXAMPLE, MEASURES, Grid, different, parsed, read

BASE = 'problem = "digits_mlp"\noptimizer = "adamw"\n'


def grid(text: str) -> Grid:
    return parsed(tomllib.loads(text), Path("grid.toml"))


def test_the_example_is_a_grid():
    found = grid(EXAMPLE)
    assert len(found.runs) == len(set(found.runs)) == 12
    assert found.runs[0].recorded == [0, 100, 200, 300, 400, 500]
    assert list(found.axes[0]) == ["optimizer", "betas", "seed"]
    assert {axes["optimizer"] for axes in found.axes} == {"adamw(weight_decay=0)", "lion(lr=0.0001)"}


def test_lists_are_axes():
    text = 'lr = [0.1, 0.2]\nbatch_size = ["full", 8, 9]\ndial = [-1, 0]\nseed = [3, 4]\nsteps = [5, 6]\nbetas = [0.5, 0.7]\n'
    runs = grid(f"{BASE}{text}[options]\neps = [1e-8, 1e-6]\n").runs
    found = {(*(dict(r.options)[k] for k in ("lr", "eps")), r.batch_size, r.dial, r.seed, r.steps) for r in runs}
    expected = set(itertools.product((0.1, 0.2), (1e-8, 1e-6), ("full", 8, 9), (-1.0, 0.0), (3, 4), (5, 6)))
    assert found == expected
    assert len(runs) == len(expected)
    assert {dict(r.options)["betas"] for r in runs} == {(0.5, 0.7)}


def test_grids_have_axes_of_their_own_beside_the_common_ones():
    text = (
        'seed = [0, 1]\nproblem = "digits_mlp"\n[[grid]]\noptimizer = "adamw"\nlr = [0.1, 0.2]\n[[grid]]\noptimizer = "lion"\n'
    )
    runs = grid(text).runs
    assert [(run.optimizer, run.options, run.seed) for run in runs] == [
        *(("adamw", (("lr", lr),), seed) for lr in (0.1, 0.2) for seed in (0, 1)),
        *(("lion", (), seed) for seed in (0, 1)),
    ]


def test_the_key_is_what_a_run_is_and_not_how_it_is_said():
    one = grid('problem = "digits_mlp"\noptimizer = "adamw(betas=(0.9, 0.95))"\nlr = 1\n')
    other = grid('optimizer = "adamw"\nproblem = "digits_mlp()"\nlr = [1.0]\nbetas = [[0.9, 0.95]]\n[run]\ncheckpoint = 1\n')
    versions = {"torch": "2"}
    assert one.runs[0].key(versions) == other.runs[0].key(versions)
    keys = {run.key(v) for run in (one.runs[0], one.runs[0]._replace(seed=1)) for v in (versions, {"torch": "3"})}
    assert len(keys) == 4


def test_scripts_are_beside_the_file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text('problem = "mine.py:setup"\noptimizer = "own/mine.py:Mine(lr=1)"\n[record]\ntest = "mine.py:test"\n')
    found = read(str(path))
    run = found.runs[0]
    assert found.place(run.problem) == f"{tmp_path}/mine.py:setup"
    assert found.place(f"{run.optimizer}(lr=1)") == f"{tmp_path}/own/mine.py:Mine(lr=1)"
    assert found.place("torch.optim.Adam") == "torch.optim.Adam"
    assert run.what == MEASURES[:3]
    assert run.batch_size is None


def test_each_problem_and_each_optimizer_is_looked_at_once():
    text = 'problem = ["digits_mlp", "digits_cnn"]\noptimizer = ["adam", "lion"]\nseed = [0, 1]\n'
    assert [(run.problem, run.optimizer) for run in different(grid(text).runs)] == [
        ("digits_mlp", "adam"),
        ("digits_mlp", "lion"),
        ("digits_cnn", "adam"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "problem is missing"),
        ('problem = "digits_mlp"', "optimizer is missing"),
        (f"{BASE}optimiser = 1", "unknown key 'optimiser'; expected some of problem, optimizer"),
        (f"{BASE}[record]\nevry = 1", r"unknown key \[record\] 'evry'"),
        (f"{BASE}[run]\njobs = 1", r"unknown key \[run\] 'jobs'"),
        (f"{BASE}[[grid]]\nrun = 1", r"unknown key \[\[grid\]\] 'run'"),
        (f"{BASE}grid = 1", r"grid must be tables \[\[grid\]\]"),
        (f"{BASE}run = 1", r"run must be a table \[run\]"),
        (f"{BASE}lr = []", "lr is an empty list"),
        (f"{BASE}lr = [0.1, -1]", "lr must be positive, got -1"),
        (f"{BASE}lr = nan", "lr must be a finite number, got nan"),
        (f"{BASE}lr = '1'", "lr must be a finite number, got '1'"),
        (f"{BASE}betas = 0.9", r"betas must be pairs such as \[\[0.9, 0.95\]"),
        (f"{BASE}betas = [[0.9]]", r"betas must be pairs"),
        (f"{BASE}batch_size = 0", "batch_size must be a whole number from 1 on, got 0"),
        (f"{BASE}batch_size = 'half'", "batch_size must be a whole number or \"full\", got 'half'"),
        (f"{BASE}dial = true", "dial must be a finite number, got True"),
        (f"{BASE}seed = 1.5", "seed must be a whole number from 0 on, got 1.5"),
        (f"{BASE}steps = 0", "steps must be a whole number from 1 on, got 0"),
        (
            'problem = "digits"\noptimizer = "adamw"',
            "problem must be one of digits_mlp, digits_cnn, text_gpt, or script.py:setup",
        ),
        ('problem = "a.py:setup(x=1)"', "a script's setup takes no options"),
        ('problem = "digits_mlp(3)"\noptimizer = "adamw"', r"expected a name or name\(option=value"),
        ('problem = "digits_mlp"\noptimizer = "adamw("', r"expected a name or name\(option=value"),
        ('problem = "digits_mlp"\noptimizer = "adamw(lr=1)"\nlr = 2', "has lr of its own, and lr is given beside it"),
        (f"{BASE}[options]\nlr = 1", r"\[options\] lr: lr is an axis of its own"),
        (f"{BASE}[options]\neps = inf", r"\[options\] eps must be a finite number, text, .*, got inf"),
        (f"{BASE}[options]\nfoo = [[nan]]", r"\[options\] foo must be a finite number, text, .*, got nan"),
        (f"{BASE}[options]\nfoo = [[{{a = 1}}]]", r"\[options\] foo must be a finite number, .*, got \{'a': 1\}"),
        (f"{BASE}[options]\nfoo = [[2020-01-01]]", r"\[options\] foo must be a finite number, .*, got datetime"),
        *(
            (f'problem = "digits_mlp"\noptimizer = "adamw(foo={value})"', r"adamw\(foo=.*\): foo must be a finite number, text")
            for value in ("{}", "{1, 2}", "1j", "b'x'", "[1, {}]", "1e999")
        ),
        ('problem = "digits_mlp"\noptimizer = "adamw(foo={[]: 1})"', r"expected a name or name\(option=value"),
        (f"{BASE}grid = []", r"grid must be tables \[\[grid\]\]"),
        (f"{BASE}lr = 1{'0' * 400}", "lr must be a finite number, got 1000"),
        (f"{BASE}[record]\nevery = 0", r"\[record\] every must be a whole number from 1 on"),
        (f"{BASE}[record]\nwhat = 'loss'", r"\[record\] what expects some of train_loss, .*, got 'loss'"),
        (f"{BASE}[record]\nwhat = []", r"\[record\] what expects some of"),
        ('problem = "a.py:setup"\n[record]\nwhat = ["test_loss"]', 'test_loss of a script needs test = "script.py:test"'),
        ('problem = "a.py:setup"\n[record]\nwhat = ["test_accuracy"]', "test_accuracy is of built-in problems"),
        ('problem = "a.py:setup"\n[record]\ntest = "b"', 'test must be such as "script.py:test"'),
        (f"{BASE}[run]\ncores = 0", r"\[run\] cores must be a whole number from 1 on"),
        (f"{BASE}[run]\ngpus = -1", r"\[run\] gpus must be a finite number from 0 on"),
        (f"{BASE}[run]\ndevice = 'tpu'", r"\[run\] device must be cpu, cuda or cuda:N, got 'tpu'"),
        (f"{BASE}[run]\ndtype = 'half'", r"\[run\] dtype must be one of float64, float32, got 'half'"),
    ],
)
def test_bad_input(text, message):
    with pytest.raises(BadInput, match=message):
        grid(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is no text"),
        (b"a = ", "is no TOML"),
        (b"lr = 1" + b"0" * 5000, "is no TOML: Exceeds the limit"),
        (b"a = 1", "unknown key 'a'"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "grid.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"grid\.toml.*{message}"):
        read(str(path))


ONE = st.one_of(
    st.sampled_from(
        [0, 1, -1, 0.5, True, float("nan"), 10**30, "", "full", "adamw", "adamw(lr=1)", "lion(", "digits_mlp", "a.py:b"]
    ),
    st.text(max_size=4),
    st.lists(st.floats(), max_size=2),
)
VALUE = st.one_of(ONE, st.lists(ONE, max_size=3), st.dictionaries(st.sampled_from(["every", "lr", "what", "cores", "x"]), ONE))
KEYS = [*AXES, "options", "grid", "record", "run", "other"]


@given(st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=4), st.booleans())
def test_whatever_a_file_says_is_a_grid_or_refused(told, whole):
    common = {"problem": "digits_mlp", "optimizer": "adamw"} if whole else {}
    try:
        found = parsed(common | told, Path("grid.toml"))
    except BadInput:
        return
    assert len({run.key({}) for run in found.runs}) == len(found.runs) > 0
    assert len(found.axes) == len(found.runs)
