"""The atlas: rows are right where the catalogue knows them, honest where there is none, and none is lost."""

import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer

import memoryless as ml
from memoryless.experiments.atlas import rows as atlas
from memoryless.experiments.atlas import subjects as atlas_subjects
from memoryless.experiments.atlas import ways as atlas_ways
from memoryless.experiments.atlas.pool import Store, run
from memoryless.experiments.atlas.rows import Row, problems
from memoryless.experiments.atlas.subjects import Subject
from memoryless.loss.measures import USUAL, evaluate
from memoryless.loss.point import Point
from memoryless.report import atlas as report


def bare(name: str, library: str = "torch") -> Row:
    found = {problem: {"kind": "refused", "reason": "for a test"} for problem in atlas.PROBLEMS}
    return atlas.row_of(library, name, found, 1.0)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """As they are at step n, one of every kind that torch has, in any order."""
    return [next(iter(atlas.examine("torch", name))) for name in ("SGD", "AdamW", "Rprop", "ASGD")]


CATALOGUE = {"SGD": ml.HeavyBall(lr=1e-3, momentum=0.9), "AdamW": ml.AdamW(lr=1e-3)}


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("problem", atlas.PROBLEMS)
@pytest.mark.parametrize("order", ["first", "resummed"])
def test_rows_are_the_catalogue(rows, name, problem, order):
    found = next(row for row in rows if row["name"] == name)["problems"][problem]
    loss = problems()[problem]
    c = ml.correction(CATALOGUE[name], loss, step=atlas_ways.STEP, order=order)
    assert found["M" if order == "first" else "resummed"] == pytest.approx(float(c.M.norm()), rel=1e-6)
    for value, effect in zip(evaluate(USUAL, Point(loss)), found["effects"], strict=True):
        expected = -1e-3 * float(value.gradient @ c.M) / value.value
        # The black box finds a difference where torch drops a tangent: to 1e-9 of M, which the inner product may cancel.
        assert effect["slopes"][order] == pytest.approx(expected, rel=1e-4)


def test_steady_state_is_the_catalogue():
    *_, row = atlas.examine("torch", "SGD")
    found, loss = row["problems"]["network"], problems()["network"]
    c = ml.correction(CATALOGUE["SGD"], loss, order="resummed")
    assert found["steady"]["resummed"] == pytest.approx(float(c.M.norm()), rel=1e-6)
    memory = row["memory"]
    assert memory["decays"]
    assert memory["mean_age"] == pytest.approx(9, rel=1e-6)
    assert [(piece["name"], round(piece["mean_age"], 6)) for piece in memory["pieces"]] == [("momentum_buffer", 9.0)]


def test_kinds(rows):
    kinds = {row["name"]: row["kind"] for row in rows}
    assert kinds == {"SGD": "agreed", "AdamW": "agreed", "Rprop": "flat", "ASGD": "no memory"}


class Odd(Optimizer):
    """Heavy ball with something odd about its memory."""

    def __init__(self, params, oddity):
        super().__init__(params, {"lr": 1e-3})
        self.oddity = oddity

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                last = self.state[p].setdefault("last", p.clone())
                if self.oddity == "random":
                    m.mul_(0.9 + 0.05 * torch.rand(())).add_(p.grad)
                elif self.oddity == "corner":  # at a frozen history nothing has moved
                    m.mul_(0.9).add_(p.grad * (1 + (p - last).abs().sum()))
                elif self.oddity == "never":
                    m.add_(p.grad)
                elif self.oddity == "nan":
                    m.add_(float("nan"))
                last.copy_(p)
                p.sub_(group["lr"] * m)


@pytest.mark.parametrize(
    ("oddity", "kind"), [("random", "random"), ("corner", "corner"), ("never", "agreed"), ("nan", "refused")]
)
def test_odd_ones(monkeypatch, oddity, kind):
    monkeypatch.setattr(atlas, "SEEDS", 3)
    monkeypatch.setattr(atlas_ways, "STEP", 10)
    monkeypatch.setattr(atlas_subjects, "subject", lambda library, name: Subject(library, name, lambda p: Odd(p, oddity)))
    *_, row = atlas.examine("torch", "Odd")
    found = row["problems"]["network"]
    assert row["kind"] == kind
    if oddity == "random":
        errors = [effect["standard_error"] for effect in found["effects"]]
        assert all(0 < error < 0.2 * abs(effect["resummed"]) for error, effect in zip(errors, found["effects"], strict=True))
    elif oddity == "never":
        assert row["memory"]["decays"] is False
        assert row["memory"]["mean_age"] is None
    elif oddity == "nan":
        assert "nan" in found["reason"]


def test_the_literal_way_catches_a_wrong_derivative(monkeypatch):
    expansion = atlas_ways.expansion

    def wrong(method, point, step):
        found = expansion(method, point, step)
        found.first().value.mul_(1.01)
        return found

    monkeypatch.setattr(atlas_ways, "expansion", wrong)
    row = next(iter(atlas.examine("torch", "SGD")))
    assert row["kind"] == "refused"
    assert "differ by 0.01" in row["problems"]["network"]["reason"]


def test_closure_is_evaluated_where_the_optimizer_is(monkeypatch):
    """SGD that asks the closure for its gradients is SGD."""

    class Asking(SGD):
        def step(self, closure):  # pyright: ignore[reportIncompatibleMethodOverride]
            closure()
            super().step()

    monkeypatch.setattr(atlas_ways, "STEP", 5)
    make = partial(Asking, lr=1e-3, momentum=0.9)
    monkeypatch.setattr(atlas_subjects, "subject", lambda library, name: Subject(library, name, make, "", "closure"))
    row = next(iter(atlas.examine("torch", "SGD")))
    assert row["kind"] == "agreed"
    for problem, loss in problems().items():
        c = ml.correction(CATALOGUE["SGD"], loss, step=5)
        assert row["problems"][problem]["M"] == pytest.approx(float(c.M.norm()), rel=1e-6)


def test_store_survives_a_kill(tmp_path):
    path = tmp_path / "atlas.jsonl"
    store = Store(path)
    for name in "abc":
        store.append(bare(name))
    whole = path.read_bytes()
    line = len(whole) // 3
    for cut in (1, line // 2, line - 1, line, line + 1, 2 * line + 7, len(whole) - 1):
        path.write_bytes(whole[:cut])
        again = Store(path)
        assert [key[1] for key in again.rows] == list("abc"[: cut // line])
        again.append(bare("d"))
        assert [key[1] for key in Store(path).rows] == [*"abc"[: cut // line], "d"]


@pytest.mark.parametrize("text", ["no row\n", '{"name": "x"}\n', "[]\n", "a file without an end"])
def test_store_is_no_other_file(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Store(path).append(bare("a"))
    assert path.read_text() == text


def test_store_forgets_other_versions(tmp_path):
    store = Store(tmp_path / "atlas.jsonl")
    store.append(bare("a"))
    store.append(bare("b") | {"versions": {"torch": "1.0"}})
    assert store.has(("torch", "a"))
    assert not store.has(("torch", "b"))


def test_whatever_happens_there_is_a_row():
    first = bare("partly") | {"given": "first version"}
    tasks = {
        "hangs": partial(time.sleep, 100),
        "dies": partial(os._exit, 3),
        "aborts": os.abort,
        "raises": partial(int, "x"),
        "partly": partial(map, eval, [repr(first), "__import__('time').sleep(100)"]),
        "fine": partial(map, eval, [repr(bare("old")), repr(bare("fine"))]),
    }
    began = time.monotonic()
    found = list(run({("torch", name): task for name, task in tasks.items()}, jobs=4, limit=2.0))
    assert time.monotonic() - began < 60
    by = {row["name"]: row for row in found}
    assert len(found) == len(tasks)
    reasons = {name: row["problems"]["network"]["reason"] for name, row in by.items()}
    assert reasons["hangs"] == "not finished within the time limit of 2 s"
    assert reasons["dies"] == "its process died, with exit code 3"
    assert reasons["aborts"] == "its process died, by signal 6"
    assert reasons["raises"] == "invalid literal for int() with base 10: 'x'"
    assert by["partly"] == first
    assert by["fine"] == bare("fine")


def test_no_worker_outlives_a_killed_command(tmp_path):
    note = tmp_path / "pid"
    task = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    script = f"""
from functools import partial
from memoryless.experiments.atlas.pool import run
if __name__ == "__main__":
    list(run({{("torch", "sleeps"): partial(exec, {task!r})}}))
"""
    command = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
    deadline = time.monotonic() + 120
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(note.read_text())
    command.kill()
    command.wait()
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")


def test_what_optimizers_must_be_given_names_optimizers():
    assert set(atlas_subjects.TORCH) <= set(atlas_subjects.names("torch"))
    assert set(atlas_subjects.PYTORCH_OPTIMIZER) <= set(atlas_subjects.names("pytorch_optimizer"))
    assert set(atlas_subjects.BASES) <= set(vars(importlib.import_module("heavyball")))


@pytest.mark.parametrize(("library", "name"), [("pytorch_optimizer", "kate"), ("heavyball", "AdamW")])
def test_other_libraries(library, name):
    row = next(iter(atlas.examine(library, name)))
    assert row["kind"] == "agreed"
    assert row["problems"]["network"]["gap"] < 1e-6


def test_a_sparse_adam_is_adam():
    row = next(iter(atlas.examine("torch", "SparseAdam")))
    c = ml.correction(ml.Adam(lr=1e-3), problems()["network"], step=atlas_ways.STEP)
    # Its eps is not scaled with the root of the bias correction: 1e-8 of gradients of a thousandth and more.
    assert row["problems"]["network"]["M"] == pytest.approx(float(c.M.norm()), rel=1e-5)


def test_the_document_is_made_of_the_rows():
    docs = Path(__file__).parents[2] / "docs"
    rows = json.loads((docs / "atlas.json").read_text())
    assert (docs / "atlas.md").read_text() == report.markdown(rows)
    for library in atlas_subjects.LIBRARIES:
        mine = [row for row in rows if row["library"] == library]
        if mine[0]["versions"] == atlas.versions(library):
            assert sorted(row["name"] for row in mine) == atlas_subjects.names(library)


def test_page_and_markdown_have_all_rows(rows):
    rows = [*rows, bare("Refused")]
    page, document = report.page(rows), report.markdown(rows)
    assert '<meta name="generator" content="memoryless' in page[:600]
    assert page.count("<tr data-problem") == len(rows) * len(atlas.PROBLEMS)
    assert "http" not in page.split("</title>")[1].replace("http-equiv", "")
    for row in rows:
        assert f"<summary>{row['name']} <small>" in page
        assert f"| {row['name']} |" in document or f"* {row['name']}: " in document
    assert "torch: 4 of 5 answered" in document


def test_order_of_rows_does_not_matter(rows):
    orders = itertools.islice(itertools.permutations(rows), 5)
    assert len({report.page(order) for order in orders}) == 1
