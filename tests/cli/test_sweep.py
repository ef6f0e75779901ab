"""`memoryless sweep` and `memoryless plan` as a user meets them."""

import json
import sys

import numpy as np
import pytest

from memoryless.cli.main import main
from memoryless.experiments.sweep import engines, planning
from memoryless.experiments.sweep.grid import read
from memoryless.experiments.sweep.planning import Cost
from memoryless.experiments.sweep.results import Results, look
from memoryless.report import sweep as report
from tests.experiments.sweep.test_driver import Here

TEXT = """
problem = "digits_mlp(count=20, width=2)"
optimizer = ["adam", "lion"]
seed = [0, 1]
steps = 4
[record]
every = 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(engines, "Local", lambda jobs: Here())
    (tmp_path / "grid.toml").write_text(TEXT)
    return tmp_path


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_the_example_is_understood(here, capsys):
    main(["sweep", "--example"])
    (here / "example.toml").write_text(capsys.readouterr().out)
    assert code("sweep", "example.toml", "--table") == 1
    assert "0 of 12 runs done, 12 left: example.sweep" in capsys.readouterr().out


def test_run_and_read(here, capsys):
    assert code("sweep", "grid.toml", "--table") == 1
    assert not (here / "grid.sweep").exists()
    capsys.readouterr()
    main(["sweep", "grid.toml"])
    shown = capsys.readouterr().out
    assert "4 of 4 runs done: grid.sweep" in shown
    assert "2/2" in shown
    main(["sweep", "grid.toml", "--table"])
    assert capsys.readouterr().out == shown
    main(["sweep", "grid.toml", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], found["failed"], found["left"]) == (4, 0, 0)
    assert [record["step"] for record in found["runs"][0]["records"]] == [0, 2, 4]
    records = Results(here / "grid.sweep").done
    assert {run["key"] for run in found["runs"]} == set(records)
    main(["sweep", "grid.toml", "--plot", "grid.png"])
    assert (here / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_failed_runs_are_told_with_their_reason(here, capsys, monkeypatch):
    def fails(task):
        return {"kind": "failed", "reason": "no luck"} if task.run.seed else engines.answer(task)

    monkeypatch.setattr(engines, "Local", lambda jobs: Here(answer=fails))
    assert code("sweep", "grid.toml") == 1
    shown = capsys.readouterr().out
    assert "2 of 4 runs done, 2 failed: grid.sweep" in shown
    assert "failed: adam, seed 1; lion, seed 1: no luck" in shown
    assert "--retry runs these again" in shown
    monkeypatch.setattr(engines, "Local", lambda jobs: Here())
    main(["sweep", "grid.toml", "--retry"])


def test_runs_that_diverged_are_left_out_of_means(here, capsys, monkeypatch):
    """One of three seeds: its last record is of an earlier step, and none of its records is drawn."""

    def made(task):
        last = [] if task.run.seed == 1 else [{"step": 4, "train_loss": 1.0 + task.run.seed}]
        records = [{"step": 0, "train_loss": 900.0 if task.run.seed == 1 else 8.0}, *last]
        return {"kind": "done", "records": records, "diverged": 2 if task.run.seed == 1 else None, "seconds": 1.0}

    monkeypatch.setattr(engines, "Local", lambda jobs: Here(answer=made))
    text = TEXT.replace('["adam", "lion"]', '"adam"').replace("[0, 1]", "[0, 1, 2]") + 'what = "train_loss"\n'
    (here / "grid.toml").write_text(text)
    main(["sweep", "grid.toml"])
    shown = capsys.readouterr().out
    assert "2.0 ± 1.4 †1" in shown
    assert "†n: n runs diverged, and are left out" in shown
    grid = read("grid.toml")
    drawn = report.picture(look(grid, Results(here / "grid.sweep")))
    assert list(np.asarray(drawn.axes[0].lines[0].get_ydata())) == [8.0, 2.0]
    assert any("1 diverged, and are left out" in text.get_text() for text in drawn.texts)


def test_ctrl_c_says_where_it_is(here, capsys, monkeypatch):
    def interrupted(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "Local", lambda jobs: Here(answer=interrupted))
    assert code("sweep", "grid.toml") == 130
    line = "memoryless: interrupted; what is done is in grid.sweep; the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "expected a file such as memoryless sweep --example prints"),
        (["sweep", "gone.toml"], "gone.toml cannot be read: No such file or directory"),
        (["sweep", "grid.toml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["sweep", "grid.toml", "--plot", "grid.toml"], "--plot must end in .png or .pdf"),
        (["sweep", "grid.toml", "--store", "grid.toml"], "store grid.toml is a file"),
        (["sweep", "bad.toml"], "unknown optimizer 'adamm'"),
        (["plan", "grid.toml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["plan", "gone.toml"], "gone.toml cannot be read"),
    ],
)
def test_bad_input_is_one_line(here, capsys, arguments, message):
    (here / "bad.toml").write_text(TEXT.replace("lion", "adamm"))
    assert code(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memoryless: ")
    assert message in line


def test_without_ray(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert code("sweep", "grid.toml", "--on", "ray") == 2
    assert "--on ray needs Ray: pip install 'memoryless[cluster]'" in capsys.readouterr().err


COST = Cost(d=10, step=0.5, record=1.0, start=2.0, memory=10**8, checkpoint=1000, data=2.0, wide=(2.0, 3.0))


def test_a_plan_is_the_sum_over_what_is_left(here, capsys, monkeypatch):
    main(["sweep", "grid.toml"])
    (here / "grid.toml").write_text(TEXT.replace("seed = [0, 1]", "seed = [0, 1, 2, 3]").replace('"lion"', '"lion", "nadam"'))
    measured = []
    monkeypatch.setattr(planning, "apart", lambda run, place: measured.append(run.optimizer) or COST)
    capsys.readouterr()
    main(["plan", "grid.toml", "--jobs", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["done"], found["left"]) == (12, 4, 8)
    assert measured == ["adam", "lion", "nadam"]
    run = 2.0 + 4 * 0.5 + 3 * 1.0
    assert found["work_seconds"] == pytest.approx(8 * run)
    assert found["seconds"] == pytest.approx(4 * run)
    assert found["memory"] == 2 * 10**8
    main(["plan", "grid.toml", "--jobs", "100"])
    shown = capsys.readouterr().out
    assert "12 runs: 4 done, 8 left" in shown
    assert "7.0 s with 100 at a time (56 s one by one, as measured alone); 800 MB of memory" in shown
    assert "one more value of optimizer +33%, seed +25%" in shown
    assert "a step takes 2.0 times as long as on half of the data" in shown
    assert "3.0 times as long with twice the width (2.0 times the parameters)" in shown


def test_a_plan_measures_in_a_process_of_its_own(here, capsys, monkeypatch):
    monkeypatch.setattr(planning, "SECONDS", 0.0)
    (here / "grid.toml").write_text(TEXT.replace('"adam", ', ""))
    main(["plan", "grid.toml", "--json"])
    (kind,) = json.loads(capsys.readouterr().out)["kinds"]
    assert kind["left"] == 2
    assert kind["d"] == 64 * 2 + 2 + 2 * 10 + 10
    assert kind["wide"][0] == pytest.approx((64 * 4 + 4 + 4 * 10 + 10) / kind["d"])
    assert kind["step"] > 0
    assert kind["memory"] > 10**7
    assert not (here / "grid.sweep").exists()
    (here / "grid.toml").write_text(TEXT.replace("count=20", "count=0"))
    assert code("plan", "grid.toml") == 2
    assert "count must lie in 1..1796" in capsys.readouterr().err


TALKS = """
import os
import torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        os.write(1, b"a word from a script\\n")
        super().__init__(params, lr)
"""


def test_a_plan_finds_an_optimizer_beside_its_file_and_leaves_its_words_out(here, monkeypatch, capfd):
    """Of a built-in problem, of which a network twice as wide is made as well; from another folder."""
    monkeypatch.setattr(planning, "SECONDS", 0.0)
    (here / "opt.py").write_text(TALKS)
    (here / "grid.toml").write_text(TEXT.replace('["adam", "lion"]', '"opt.py:Mine"'))
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    main(["plan", "../grid.toml", "--json"])
    (kind,) = json.loads(capfd.readouterr().out)["kinds"]
    assert kind["wide"] is not None
