"""Hugging Face: the callback in a loop that calls it as the Trainer does, and in the Trainer itself."""

import importlib.util
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from memoryless.integrations.transformers import MemoryCallback, clip_by_norm
from memoryless.live.monitoring.log import read, stops

TRAINER = importlib.util.find_spec("accelerate") is not None or "CI" in os.environ


def model() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(17, (8,), generator=generator) for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def by_hand(callback: MemoryCallback | None, steps: int = 13, micro: int = 2, clip: float = 0.5) -> list[torch.Tensor]:
    net = model().double().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.8, 0.95))
    args, control = SimpleNamespace(max_grad_norm=clip), None
    batches = [
        {key: torch.stack([row[key] for row in samples(4 * steps)[4 * i : 4 * i + 4]]) for key in ("input_ids", "labels")}
        for i in range(steps)
    ]
    if callback:
        callback.on_train_begin(args, None, control, model=net, optimizer=optimizer)
    for batch in batches:
        halves = [{key: x[2 * i : 2 * i + 2] for key, x in batch.items()} for i in range(micro)]
        items = sum(int((half["labels"][:, 1:] != -100).sum()) for half in halves)
        for half in halves:
            net(**half, num_items_in_batch=items).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if callback:
            callback.on_step_end(args, None, control, model=net, optimizer=optimizer)
        with torch.no_grad():
            net.eval()(**halves[0])  # an evaluation is no training
            net.train()
    if callback:
        callback.on_train_end(args, None, control)
    return [p.detach() for p in net.parameters()]


def test_called_as_the_trainer_does():
    callback = MemoryCallback(every=6, betas=None, replays=100)
    watched, plain = by_hand(callback), by_hand(None)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    assert callback.monitor is not None
    assert callback.monitor.notes == []
    assert [stop["step"] for stop in callback.monitor.stops] == [6, 12]
    # Dropout is drawn again, the loss is divided by the items of both halves, the clipping is the Trainer's.
    assert all(stop["gradient_differs"] < 1e-9 for stop in callback.monitor.stops)
    assert callback._hook is None


def test_without_an_optimizer_it_says_so(caplog: pytest.LogCaptureFixture):
    callback = MemoryCallback()
    with caplog.at_level(logging.WARNING, "memoryless"):
        callback.on_train_begin(SimpleNamespace(), None, None, model=model(), optimizer=None)
    assert "gives its callbacks no torch optimizer (got NoneType)" in caplog.text
    callback.on_step_end(None, None, None)
    callback.on_train_end()


def test_clipping_is_torch_s():
    gradient = torch.randn(50)
    for most in (0.1, 100.0):
        p = torch.nn.Parameter(torch.zeros(50))
        p.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([p], most)
        torch.testing.assert_close(clip_by_norm(most)(gradient), p.grad, rtol=1e-12, atol=0)
    assert clip_by_norm(0.0) is None


@pytest.mark.skipif(not TRAINER, reason="the Trainer needs accelerate")
def test_in_the_trainer(tmp_path: Path):
    torch.set_default_dtype(torch.float32)
    try:
        ends = []
        for log in (tmp_path / "run.jsonl", None):
            net = model()
            options = {"every": 4, "betas": None, "replays": 100}
            callbacks: list[Any] = [MemoryCallback(log=str(log), **options)] if log else []
            arguments = transformers.TrainingArguments(
                output_dir=str(tmp_path), max_steps=9, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                learning_rate=1e-3, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
            )  # fmt: skip
            data: Any = samples(30)
            trainer = transformers.Trainer(net, arguments, train_dataset=data, callbacks=callbacks)
            trainer.train()
            ends.append([p.detach().clone() for p in net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
        records = read(tmp_path / "run.jsonl")
        assert [r["text"] for r in records if r["kind"] == "note"] == []
        assert [r["step"] for r in stops(records)] == [4, 8]
        assert all(r["gradient_differs"] < 1e-4 for r in stops(records))
    finally:
        torch.set_default_dtype(torch.float64)
