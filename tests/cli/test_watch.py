"""`memoryless watch` and `memoryless report` as a user meets them, in-process."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import memoryless as ml
from memoryless.cli.main import main
from memoryless.report.watch import sentence, word
from tests.live.monitoring.monitored import LR, Training, monitor


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    training = Training(lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.8, 0.95)))
    betas = ((0.5, 0.8, 0.9), (0.9, 0.95, 0.99))
    measures = ["gradient_1_norm", "gradient_norm_squared"]
    options = {"betas": betas, "shadows": [ml.Lion(smoothing=0.1)], "measures": measures}
    with monitor(training, log=path, **options) as watching:
        training.run(lambda batches: watching.step(batches))
    return path.read_text().splitlines(keepends=True)


def test_once(records: list[str], folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "run.jsonl").write_text("".join(records) + '{"kind": "note", "st')
    main(["watch", "run.jsonl", "--once"])
    text = " ".join(capsys.readouterr().out.split())
    assert "adamw(lr=0.001, betas=(0.8, 0.95)), 49 parameters: run.jsonl, ended at step 25" in text
    assert "At step 24 " in text
    assert "other betas on the gradient 1-norm" in text
    assert "lion(" in text


def test_it_stays_until_the_end(records: list[str], folder: Path, capsys: pytest.CaptureFixture[str]):
    path = folder / "run.jsonl"
    path.write_text("".join(records[:2]))

    def go_on() -> None:
        for line in records[2:]:
            time.sleep(0.05)
            with path.open("a") as file:
                file.write(line)

    writer = threading.Thread(target=go_on)
    writer.start()
    main(["watch", "run.jsonl", "--seconds", "0.02"])
    writer.join()
    assert "ended at step 25" in capsys.readouterr().out


def test_page(records: list[str], folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "run.jsonl").write_text("".join(records))
    main(["report", "run.jsonl"])
    shown = capsys.readouterr()
    assert "wrote run.html" in shown.err
    page = (folder / "run.html").read_text()
    for heading in ("effect over training", "Other betas", "Other methods", "tensors", "what it cost", "All stops"):
        assert heading in page
    main(["report", "run.jsonl"])  # what memoryless wrote may be written again
    main(["report", "run.jsonl", "--html", "other.html"])
    assert (folder / "other.html").exists()


def test_a_run_with_nothing_measured(records: list[str], folder: Path, refused: Callable[..., str]):
    note = json.dumps({"kind": "note", "step": 3, "text": "no stop within 3 steps"})
    (folder / "run.jsonl").write_text(f"{records[0]}{note}\n")
    main(["watch", "run.jsonl", "--once"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watch", "none.jsonl"], "log none.jsonl cannot be read"),
        (["watch", "base.py", "--once"], "is no log of a monitored run"),
        (["watch", "run.jsonl", "--seconds", "0"], "--seconds must be positive"),
        (["report", "none.jsonl"], "log none.jsonl cannot be read"),
        (["report", "run.jsonl", "--html", "mine.html"], "was not written by memoryless"),
    ],
)
def test_bad_input(records: list[str], arguments: list[str], message: str, folder: Path, refused: Callable[..., str]):
    (folder / "run.jsonl").write_text("".join(records))
    assert message in refused(*arguments)


WORDS = {
    "regularizes": (-0.02, -0.018, 0.002),
    "anti-regularizes": (0.02, 0.018, 0.002),
    "undecided": (0.02, 0.003, 0.002),
}


@pytest.mark.parametrize("expected", WORDS)
def test_words_follow_what_happens_and_its_error(expected: str):
    change, slope, error = WORDS[expected]
    effect = {"measure": "gradient_1_norm", "change": change, "slope": slope, "error": error}
    assert word(effect) == expected
    assert ("undecided" in sentence(effect, 7)) == (expected == "undecided")
    assert word(effect | {"change": -change}) == "undecided"
    assert word(effect | {"change": None}) == "undecided"
