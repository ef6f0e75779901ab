"""Steps in a row are looked at in parts: whole now and then, otherwise some coordinates of large tensors, others each time."""

from typing import Any

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.live.check.record import LARGE, ROUND, window_of
from memoryless.live.check.reference import Reference
from tests.live.check.mutations import LR, wrapped

O = torch.optim
SIZE = 2 * LARGE


class Steps:
    """Of a large tensor and two small ones, checked."""

    def __init__(self, make: Any = O.AdamW, **options: Any):
        self.generator = torch.Generator().manual_seed(0)
        self.tensors = [nn.Parameter(self.draw(*shape)) for shape in ((SIZE // 4, 4), (4, 2), (3,))]
        self.optimizer = make(self.tensors, **{"lr": LR} | options)
        self.check = ml.check_step(self.optimizer)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float32)

    def step(self, after: Any = lambda: None) -> Any:
        for p in self.tensors:
            p.grad = self.draw(*p.shape)
        with self.check, torch.no_grad():
            self.optimizer.step()
            after()
        assert self.check.result is not None
        return self.check.result


def test_every_coordinate_is_looked_at_in_a_round_and_each_part_meets_the_next():
    seen = torch.zeros(SIZE)
    for n in range(1, ROUND):
        first, last = window_of(SIZE, n) or (0, SIZE)
        seen[first:last] += 1
        following = window_of(SIZE, n + 1) or (0, SIZE)
        assert max(first, following[0]) < min(last, following[1])
    assert int(seen.min()) >= 1
    assert window_of(SIZE, 0) is None
    assert window_of(SIZE, ROUND) is None
    assert window_of(LARGE, 1) is None


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"weight_decay": 0.1, "amsgrad": True}], ids=str)
def test_clean_steps_in_parts_are_the_documented_ones(options: dict[str, Any]):
    steps = Steps(**options)
    results = [steps.step() for _ in range(6)]
    assert all(r.ok for r in results), [r.verdict for r in results]
    assert results[0].judged == 1
    assert all(0.02 < r.judged < 0.05 for r in results[1:])
    assert "looked at: " in results[1].verdict


def test_what_is_broken_everywhere_is_found_at_each_step_and_what_is_broken_at_one_coordinate_within_a_round():
    def around(self: Any, step: Any) -> None:
        decay, self.param_groups[0]["weight_decay"] = self.param_groups[0]["weight_decay"], 0.0
        step()
        self.param_groups[0]["weight_decay"] = decay

    steps = Steps(wrapped(O.AdamW, around), weight_decay=0.1)
    for _ in range(4):
        result = steps.step()
        assert (result.ok, result.causes[0].name) == (False, "no weight decay")
    steps = Steps()
    found = [steps.step(lambda: steps.tensors[0].view(-1)[SIZE // 2].add_(1)).ok for _ in range(ROUND)]
    assert found.count(False) >= 2  # twice in parts, and whole
    assert not found[0]


def test_what_changes_between_steps_is_found_where_two_parts_meet():
    steps = Steps()
    for _ in range(5):
        assert steps.step().ok
    steps.optimizer.state[steps.tensors[0]]["exp_avg"].mul_(2)
    assert [c.name for c in steps.step().causes] == ["state changed between steps"]
    steps.tensors[0].data.add_(1)
    result = steps.step()
    assert (result.ok, [note.split(":")[0] for note in result.notes]) == (True, ["parameters changed between steps"])
    assert steps.step().notes == ()
    steps.optimizer.state[steps.tensors[0]]["step"].fill_(0)
    assert steps.step().causes[0].name == "step count not restored"


def test_coordinates_taken_together_are_what_each_tensor_gives():
    steps = Steps(fused=True)
    for _ in range(3):
        steps.step()
    record = steps.check._previous
    assert record is not None
    assert record.held[0].window is not None
    joint, each = Reference(record), Reference(record)
    alone = each.redo(lambda groups, held: None)  # with a change put in, if none, tensors are taken one by one
    for a, b in zip([*joint.at.thetas, *(s["exp_avg_sq"] for s in joint.at.states)],
                    [*alone.thetas, *(s["exp_avg_sq"] for s in alone.states)], strict=True):  # fmt: skip
        assert torch.equal(a, b)
    masks = [torch.arange(h.theta.numel()).view(h.theta.shape) % 3 == 0 for h in record.held]
    some = joint.at_some(masks)
    (bound, whole) = (r.bound(r.at) for r in (some, each))
    picked = torch.cat([t[m] for t, m in zip(whole.thetas, masks, strict=True)])
    torch.testing.assert_close(torch.cat([t.reshape(-1) for t in bound.thetas]), picked, rtol=1e-9, atol=0)


def test_the_run_is_bit_for_bit_the_one_without():
    ends = []
    for checked in (False, True):
        steps = Steps(foreach=True)
        for _ in range(4):
            if checked:
                steps.step()
            else:
                for p in steps.tensors:
                    p.grad = steps.draw(*p.shape)
                steps.optimizer.step()
        ends.append(
            torch.cat([x.reshape(-1) for x in (*steps.tensors, *(s["exp_avg"] for s in steps.optimizer.state.values()))])
        )
    assert torch.equal(*ends)
