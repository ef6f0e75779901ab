"""Fig. 1: the bias-corrected Lion, the data, the runs, what is said of them, and the command."""

import gzip
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from memoryless.errors import Diverged
from memoryless.experiments import fig1 as experiment
from memoryless.experiments import problems
from memoryless.experiments.fig1 import KINDS, Fig1, Lion, Run, Setting, fig1, follow, loss_of, settings
from memoryless.experiments.images import FILES, Images, load, read_idx
from memoryless.methods import catalogue, kernel
from memoryless.paths.trajectory import trajectory
from memoryless.report.reproduce import DASHES, lines, picture

DOCS = Path(__file__).parents[2] / "docs"
BETAS = (0.9, 0.95)
RANDOM = np.random.default_rng(0)
TINY = Images("tiny", RANDOM.random((20, 5)), RANDOM.integers(0, 3, 20))


def run(distances: dict[str, list[float]], seed: int = 0, lr: float = 1e-4, diverged: dict[str, int] | None = None) -> Run:
    return Run(Setting("AdamW", BETAS, lr, seed, steps=2), distances, diverged or {})


# The bias-corrected Lion


@pytest.mark.parametrize("betas", [BETAS, (0.95, 0.9), (0.9, 0.9)])
def test_ages_of_lion(betas: tuple[float, float]):
    variables = Lion(1e-4, betas, 1e-6, 0.0).variables
    for n in (0, 1, 7, 300):
        weights = np.sum([kernel.kernel(v, n) for v in variables], axis=0)
        assert weights.sum() == pytest.approx(1, abs=1e-14)
        assert (weights > 0).all()
    plain = np.sum([kernel.kernel(v, 300) for v in catalogue.Lion(1e-4, betas).variables], axis=0)
    # 0.95^301 = 2e-7 is how much correction is left after 300 steps
    assert weights == pytest.approx(plain, abs=1e-7)


def test_lion_by_its_recursion():
    rho1, rho2, eps, decay = 0.9, 0.95, 1e-3, 0.1
    method = Lion(1e-2, (rho1, rho2), eps, decay)
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64)
    m, state = torch.zeros_like(theta), method.init(theta)
    for n, g in enumerate(torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))):
        m = rho2 * m + (1 - rho2) * g
        c = rho1 / rho2 * m / (1 - rho2 ** (n + 1)) + (1 - rho1 / rho2) * g
        state, F = method.update(state, g, theta)
        assert torch.allclose(F, c / (c**2 + eps).sqrt() + decay * theta, rtol=0, atol=1e-14)


# The data


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


PIXELS, CLASSES = RANDOM.integers(0, 256, (6, 4, 3)), np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FILES[0]).write_bytes(idx(PIXELS))
    (tmp_path / f"{FILES[1]}.gz").write_bytes(gzip.compress(idx(CLASSES)))
    return tmp_path


def test_digits_are_those_of_the_problem():
    found = loss_of(load("digits"), 3)
    torch.set_default_dtype(torch.float32)
    try:
        expected = problems.digits_mlp(3).loss
    finally:
        torch.set_default_dtype(torch.float64)
    assert torch.equal(found.theta, expected.theta)
    assert torch.equal(found(found.theta), expected(expected.theta))


def test_idx_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    _, pixels, classes = load(str(folder))
    assert pixels == pytest.approx(PIXELS.reshape(6, 12) / 255)
    assert classes.tolist() == CLASSES.tolist()
    monkeypatch.setattr("memoryless.experiments.images.COUNT", 4)
    assert [len(x) for x in load(str(folder))[1:]] == [4, 4]


def test_hub(monkeypatch: pytest.MonkeyPatch):
    rows = {"image": PIXELS.astype(np.uint8), "label": CLASSES}
    asked: list[Any] = []

    class Table:
        def with_format(self, name: str) -> Any:
            asked.append(name)
            return self

        def __getitem__(self, wanted: slice) -> dict[str, np.ndarray]:
            return {name: column[wanted] for name, column in rows.items()}

    def load_dataset(name: str, split: str) -> Table:
        asked.extend((name, split))
        return Table()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = load("mnist")
    assert asked == ["ylecun/mnist", "train[:10000]", "numpy"]
    assert found.name == "MNIST"
    assert found.pixels == pytest.approx(PIXELS.reshape(6, 12) / 255)
    assert found.classes.tolist() == CLASSES.tolist()


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"could not be loaded \(ConnectionError: no route\); try again, or give a folder"):
        load("mnist")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets: pip install 'memoryless\[data\]', or give a folder"):
        load("mnist")


WHOLE = idx(CLASSES)
DAMAGED = {
    "empty": ("x", b"", "is not an IDX file of unsigned bytes; it begins with nothing"),
    "text": ("x", b"label\n", "it begins with 6c 61 62 65"),
    "floats": ("x", b"\0\0\x0d\x01" + WHOLE[4:], "it begins with 00 00 0d 01"),
    "header": ("x", WHOLE[:6], "is not an IDX file"),
    "short": ("x", WHOLE[:-1], "is damaged: its header promises 6 bytes of data, it has 5"),
    "long": ("x", WHOLE + b"\0", "it has 7"),
    "not gzip": ("x.gz", WHOLE, "is damaged or not a gzip file"),
    "torn gzip": ("x.gz", gzip.compress(WHOLE)[:-9], "is damaged or not a gzip file"),
}


@pytest.mark.parametrize(("name", "data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(name: str, data: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / name)


# The runs


@pytest.mark.parametrize("optimizer", experiment.OPTIMIZERS)
def test_distances_are_those_of_trajectories(optimizer: str):
    setting = Setting(optimizer, BETAS, 1e-3, seed=1, steps=20)
    found, loss = follow(setting, TINY), loss_of(TINY, 1)
    memory, *others = (trajectory(setting.method, loss, 20, kind, record=setting.recorded) for kind in ("memory", *KINDS))
    for kind, path in zip(KINDS, others, strict=True):
        assert found.distances[kind] == (path - memory).abs().amax(dim=1).tolist()
    assert not found.diverged


@pytest.mark.parametrize(("steps", "every", "count"), [(2, 1, 2), (199, 1, 199), (211, 2, 106), (1000, 10, 100)])
def test_recorded_steps(steps: int, every: int, count: int):
    recorded = Setting("Lion", BETAS, 1e-3, 0, steps=steps).recorded
    assert recorded == [*range(every, steps, every), steps]
    assert len(recorded) == count


def test_the_claim_on_digits():
    """At step 1000 it is 5 and more; a fifth of the way there is time for a part of it."""
    (c,) = Fig1("digits", [follow(Setting("AdamW", BETAS, 1e-4, seed=0, steps=200), load("digits"))]).comparisons
    first, resummed = (c.closer(kind) for kind in KINDS[1:])
    assert first.end[0] > 3
    assert resummed.end[0] > 2 * first.end[0]
    assert resummed.average[0] > first.average[0] > 2


def test_the_figure_of_the_documentation():
    found = json.loads((DOCS / "fig1.json").read_text())
    (c,) = (c for c in found["comparisons"] if (c["optimizer"], c["betas"], c["lr"]) == ("AdamW", [0.9, 0.95], 1e-4))
    assert c["steps"][-1] == 1000
    frozen, first, resummed = (np.mean(c["distances"][kind], axis=0)[-1] for kind in KINDS)
    assert frozen > 5 * first > 5 * resummed


def diverging(kind: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def iterates(method: Any, loss: Any, steps: int, wanted: str) -> Any:
        for n, point in enumerate(real(method, loss, steps, wanted)):
            if wanted == kind and n > step:
                raise Diverged(f"at {step}", step)
            yield point

    real = experiment.iterates
    monkeypatch.setattr(experiment, "iterates", iterates)


@pytest.mark.parametrize("kind", ["frozen", "first", "resummed"])
def test_a_path_that_diverges_leaves_the_others(kind: str, monkeypatch: pytest.MonkeyPatch):
    setting = Setting("AdamW", BETAS, 1e-3, seed=1, steps=9)
    whole = follow(setting, TINY)
    diverging(kind, 5, monkeypatch)
    found = follow(setting, TINY)
    assert found.diverged == {kind: 5}
    assert found.distances == whole.distances | {kind: whole.distances[kind][:5] + [math.inf] * 4}


def test_an_optimizer_that_diverges_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    diverging("memory", 5, monkeypatch)
    taken: list[int] = []
    found = follow(Setting("AdamW", BETAS, 1e-3, seed=1, steps=9), TINY, taken.append)
    assert found.diverged == {"memory": 5}
    assert all(len(d) == 9 and np.isfinite(d[:5]).all() and np.isinf(d[5:]).all() for d in found.distances.values())
    assert sum(taken) == 9
    assert list(lines(Fig1("tiny", [found])))[5] == "  the optimizer itself diverged at step 5 (seed 1)"


def test_side_by_side_is_the_same():
    wanted = settings([BETAS], [1e-3], seeds=1, steps=4)
    seen: dict[int, list[int]] = {1: [], 2: []}
    together, apart = (fig1(wanted, TINY, jobs, steps.append) for jobs, steps in seen.items())
    assert apart == together
    assert [r.setting for r in apart.runs] == wanted
    assert seen[1] == [*range(1, 9)]
    assert seen[2][-1] == 8


# What is said


def test_verdicts():
    near, far, equal, lost = [1.0, 1.0], [9.0, 9.0], [3.0, 3.0], [math.inf, math.inf]
    cases = [
        ([(equal, near), (equal, near)], "holds"),
        ([(equal, far), (equal, far)], "does not hold"),
        ([(equal, equal)], "does not hold"),
        ([(equal, near), (equal, far)], "holds in part (closer at the end with 1 of 2 seeds, on average with 1)"),
        ([(equal, [9.0, 2.0])], "holds in part (closer at the end with 1 of 1 seeds, on average with 0)"),
        ([(lost, near)], "holds"),
        ([(near, lost)], "does not hold"),
        ([(lost, lost)], "is undecided"),
    ]
    for distances, verdict in cases:
        runs = [run({"frozen": a, "first": b, "resummed": b}, seed) for seed, (a, b) in enumerate(distances)]
        (c,) = Fig1("x", runs).comparisons
        assert c.closer("first").verdict == verdict


def test_lines():
    runs = [
        run({"frozen": [1.0, 4.0], "first": [1.0, 1.0], "resummed": [2.0, 8.0]}),
        run({"frozen": [1.0, 9.0], "first": [1.0, 1.0], "resummed": [2.0, 27.0]}, seed=1),
        run({"frozen": [1.0, 4.0], "first": [1.0, math.inf], "resummed": [1.0, 2.0]}, lr=3e-4, diverged={"first": 1}),
    ]
    assert list(lines(Fig1("x", runs))) == [
        "Distance from the optimizer at step 2, against frozen's (by seed), and on average over the run",
        "AdamW (0.9, 0.95), lr 1e-4",
        "  frozen       6.5",
        "  first order  1        6 times closer (4 to 9), on average 3.5 times closer",
        "  resummed     18       2.4 times FARTHER (2 to 3), on average 2.4 times FARTHER",
        "AdamW (0.9, 0.95), lr 3e-4",
        "  frozen       4",
        "  first order  -        inf times FARTHER, on average inf times FARTHER",
        "  resummed     2        2 times closer, on average 1.7 times closer",
        "  first order diverged at step 1 (seed 0)",
        "The paper's claim, that the correction brings the path closer to the optimizer's",
        "  first order  holds: AdamW (0.9, 0.95), lr 1e-4",
        "  first order  does not hold: AdamW (0.9, 0.95), lr 3e-4",
        "  resummed     does not hold: AdamW (0.9, 0.95), lr 1e-4",
        "  resummed     holds: AdamW (0.9, 0.95), lr 3e-4",
    ]
    mixed = [run({"frozen": [4.0, 4.0], "first": [d, d], "resummed": [4.0, 4.0]}, seed) for seed, d in enumerate((2.0, 16.0))]
    assert list(lines(Fig1("x", mixed)))[3:5] == [
        "  first order  9        1.4 times FARTHER (4 FARTHER to 2 closer), on average 1.4 times FARTHER",
        "  resummed     4        as close (1 to 1), on average as close",
    ]
    lost = [math.inf, math.inf]
    assert list(lines(Fig1("x", [run(dict.fromkeys(KINDS, lost), diverged={"memory": 0})])))[2:6] == [
        "  frozen       -",
        "  first order  -        not comparable, on average not comparable",
        "  resummed     -        not comparable, on average not comparable",
        "  the optimizer itself diverged at step 0 (seed 0)",
    ]


def test_picture():
    distances = {"frozen": [0.0, 1.0], "first": [1e-3, 1.001], "resummed": [1e-3, math.inf]}
    many = [run(distances, seed, lr) for lr in (1e-4, 2e-4, 3e-4) for seed in range(2)]
    shown = picture(Fig1("x", [*many, run(distances, lr=4e-4, diverged={"resummed": 1})]))
    (ax,) = shown.axes
    labels = {t.get_text(): t.get_position()[1] for t in ax.texts}
    assert len(labels) == 12
    assert "resummed, lr 4e-4 †" in labels
    assert min(b - a for a, b in itertools.pairwise(sorted(labels.values()))) > 0.06
    assert len({line.get_color() for line in ax.lines}) == 3
    assert len(DASHES) == 4
