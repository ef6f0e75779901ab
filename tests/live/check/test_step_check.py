"""`check_step`: every broken step is found with its cause, no clean step is; the run stays bit for bit what it is."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import memoryless as ml
from memoryless.errors import BadInput, BadType
from memoryless.flat import Layout, flat
from memoryless.live.check import record
from memoryless.live.check.reference import Reference, copied_optimizer
from memoryless.methods.buffers import states_of
from memoryless.methods.method_optimizer import MethodOptimizer
from tests.live.check.held_out import HELD_OUT
from tests.live.check.mutations import LR, MUTATIONS, Loop, Mutation, broken, clip, sgd

O = torch.optim


def gradient(p: torch.Tensor) -> torch.Tensor:
    assert p.grad is not None
    return p.grad


@pytest.mark.parametrize("mutation", HELD_OUT, ids=lambda m: m.name)
def test_broken_steps_that_it_was_not_written_for_too(mutation: Mutation):
    result = mutation.run()
    assert result.ok is False
    assert result.causes[0].name == mutation.cause


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_broken_step_is_found_its_cause_first(mutation: Mutation):
    result = mutation.run()
    assert result.ok is False
    assert result.causes[0].name == mutation.cause
    assert result.causes[0].name in result.verdict
    assert result.causes[0].explains > 0.999


CLEAN: dict[str, tuple[Any, dict[str, Any]]] = {
    "heavy ball": (O.SGD, {"lr": LR, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.1}),
    "Nesterov": (O.SGD, {"lr": LR, "momentum": 0.9, "nesterov": True}),
    "Adam": (O.Adam, {"weight_decay": 0.1}),
    "amsgrad": (O.Adam, {"amsgrad": True}),
    "AdamW": (O.AdamW, {}),
    "NAdam": (O.NAdam, {"weight_decay": 0.1}),
    "RMSprop": (O.RMSprop, {}),
    "centered RMSprop": (O.RMSprop, {"centered": True, "momentum": 0.9}),
    "RAdam": (O.RAdam, {}),
    "Adamax": (O.Adamax, {}),
    "Adagrad": (O.Adagrad, {}),
    "Adadelta": (O.Adadelta, {}),
    "ASGD": (O.ASGD, {}),
    "Rprop": (O.Rprop, {}),
    "Adafactor": (O.Adafactor, {}),
}
PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "lr tensor": {"lr": torch.tensor(LR)},
}
FUSED = {"heavy ball", "Nesterov", "Adam", "amsgrad", "AdamW", "Adagrad"}


def clean(make: Any, dtype: torch.dtype, steps: int = 8, **options: Any) -> None:
    loop = Loop(make, dtype, tells=True, **options)
    for _ in range(steps):
        result = loop.steps(1)
        assert result.ok, (result.verdict, result.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "path"), [(n, p) for n in CLEAN for p in (*PATHS, "fused") if p in PATHS or n in FUSED])
def test_no_alarm_in_clean_steps(name: str, path: str, dtype: torch.dtype):
    cls, options = CLEAN[name]
    more = {"fused": True} if path == "fused" else PATHS[path] | ({"foreach": False} if path == "lr tensor" else {})
    clean(lambda model: cls(model.parameters(), **options | more), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "method", [ml.HeavyBall(), ml.Nesterov(), ml.RMSprop(), ml.Adam(), ml.AdamW(), ml.NAdam(), ml.Lion(), ml.Signum()], ids=str
)
def test_no_alarm_in_clean_steps_of_the_catalogue(method: ml.Method, dtype: torch.dtype):
    clean(lambda model: MethodOptimizer(model.parameters(), method), dtype)


def test_no_alarm_where_a_matrix_is_orthogonalized():
    clean(lambda model: O.Muon([p for p in model.parameters() if p.ndim == 2], lr=LR), torch.float32)


@pytest.mark.parametrize("name", ["heavy ball", "Nesterov", "Adam", "AdamW", "NAdam", "RMSprop"])
def test_the_reference_is_the_catalogues(name: str):
    """The documented step by torch's single-tensor path and by the momentum form from the buffers, to 1e-14."""
    cls, options = CLEAN[name]
    loop = Loop(lambda model: cls(model.parameters(), **options))
    loop.steps(4)
    loop.optimizer.zero_grad()
    loop.backward(loop.batches())
    tensors = list(loop.model.parameters())
    layout = Layout(dict(loop.model.named_parameters()))
    method, (state,) = states_of(loop.optimizer, layout)
    _, F = method.update((state,) if len(method.parts) > 1 else state, flat(gradient(p) for p in tensors), layout.theta())  # pyright: ignore
    redone = Reference(record.before(loop.optimizer, {})).redo()
    torch.testing.assert_close(flat(redone.thetas), layout.theta() - method.lr * F, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_step_may_correct_its_bias_in_float32(compiled: bool):
    """1 - 0.999 in float32 is off by 1e-5, which moving the betas does not tell: 1 - beta_2 in v moves along."""

    def step(self: Any) -> None:
        (group,) = self.param_groups
        b1, b2 = (torch.tensor(b, dtype=torch.float32) for b in group["betas"])
        for p in group["params"]:
            s = self.state[p]
            s.update(s or {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)})
            s["step"] += 1
            s["exp_avg"].lerp_(p.grad, 1 - group["betas"][0])
            s["exp_avg_sq"].mul_(group["betas"][1]).addcmul_(p.grad, p.grad, value=1 - group["betas"][1])
            c1, c2 = (1 - b ** s["step"].float() for b in (b1, b2))
            p.sub_(group["lr"] * (s["exp_avg"] / c1) / ((s["exp_avg_sq"] / c2).sqrt() + group["eps"]))

    loop = Loop(lambda m: broken(O.Adam, step)(m.parameters(), lr=0.1), torch.float32)
    note = loop.check.note

    def noted() -> None:
        loop.check._compiled = compiled
        note()

    loop.check.note = noted  # pyright: ignore[reportAttributeAccessIssue]
    assert [loop.steps(1).ok for _ in range(3)] == [True] * 3 if compiled else loop.steps(1).ok is False


def test_an_optimizer_whose_copy_would_step_the_run_is_not_checked_and_the_run_goes_on_as_it_would():
    class Closed(O.Optimizer):
        def __init__(self, parameters: Any):
            super().__init__(parameters, {"lr": LR})
            self.held = self.param_groups[0]["params"]
            self.update = lambda: [p.sub_(p.grad, alpha=LR) for p in self.held]  # of the original, in a copy too

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.update()

    ends = []
    for how in ("plain", "checked", "recorded"):
        loop = Loop(lambda model: Closed(model.parameters()))
        for _ in range(3):
            loop.optimizer.zero_grad()
            if how == "checked":
                assert "writes into what the run holds" in loop.step(loop.batches()).verdict
            elif how == "recorded":
                with ml.recorded(loop.optimizer) as step:
                    loop.plain(loop.batches())
                assert "writes into what the run holds" in step.check().verdict
            else:
                loop.plain(loop.batches())
        ends.append(flat(loop.model.state_dict().values()))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_an_optimizer_made_of_others_or_that_keeps_by_id_is_copied_whole():
    class Keeps(O.SGD):
        def __init__(self, parameters: Any):
            super().__init__(parameters, lr=LR)
            self.inner = O.AdamW(self.param_groups, lr=LR)
            self.inner.extra = 2.0  # pyright: ignore[reportAttributeAccessIssue]
            self.sizes: dict[int, float] = {}

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            for p in self.param_groups[0]["params"]:
                self.sizes[id(p)] = self.sizes.get(id(p), 0.0) + 1.0
                p.sub_(p.grad, alpha=LR * self.inner.extra / self.sizes[id(p)])  # pyright: ignore

    model = nn.Linear(2, 1)
    live = Keeps(model.parameters())
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        live.step()
    copied = copied_optimizer(live)
    assert isinstance(copied, Keeps)
    for p, q in zip(model.parameters(), copied.param_groups[0]["params"], strict=True):
        q.grad = gradient(p).clone()
    live.step()
    copied.step()
    for p, q in zip(model.parameters(), copied.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


def test_the_run_is_bit_for_bit_the_one_without():
    def run(check: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2))
        optimizer = O.AdamW(model.parameters())

        def criterion(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return model(x).square().mean()

        around = ml.check_step(optimizer, model, criterion)
        for _ in range(5):
            x = torch.randn(8, 6)
            optimizer.zero_grad()
            if check:
                with around.at([x]):
                    criterion(model, x).backward()
                    optimizer.step()
                assert around.result is not None
                assert around.result.ok, around.result.verdict
                assert around.result.shares is not None
            else:
                criterion(model, x).backward()
                optimizer.step()
        return flat([*model.state_dict().values(), torch.randn(3)])

    assert torch.equal(run(True), run(False))


def test_shares_add_up_and_are_those_of_heavy_ball_by_hand():
    theta = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = O.SGD([theta], lr=0.1, momentum=0.5, weight_decay=0.2)
    theta.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
    optimizer.step()
    buffer, start = optimizer.state[theta]["momentum_buffer"].clone(), theta.detach().clone()
    with ml.check_step(optimizer) as check:
        optimizer.step()
    assert check.result is not None
    assert check.result.shares is not None
    parts = {"gradient": gradient(theta), "memory": 0.5 * buffer, "decay": 0.2 * start}
    step = torch.stack(list(parts.values())).sum(0)
    for name, part in parts.items():
        assert check.result.shares["whole"][name] == pytest.approx(float((part * step).sum() / (step * step).sum()), rel=1e-12)
    assert sum(check.result.shares["whole"].values()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["heavy ball", "amsgrad", "AdamW", "RMSprop"])
def test_a_clean_step_is_settled_by_one_step_in_its_own_precision(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    cls, options = CLEAN[name]
    loop = Loop(lambda model: cls(model.parameters(), **options), dtype)
    monkeypatch.setattr(Reference, "redo", lambda *_: pytest.fail("a further step"))
    for _ in range(3):
        assert loop.steps(1).reference == f"{cls.__name__}, single-tensor path in {str(dtype).removeprefix('torch.')}"


def test_one_bit_off_is_looked_at_in_float64_and_what_is_kept_is_no_view_of_the_run():
    loop = Loop(lambda model: O.AdamW(model.parameters()), torch.float32)
    first = loop.steps(1)
    kept = loop.check._previous
    assert kept is not None
    held = [x.clone() for h in kept.held for x in (h.theta, h.after)]

    def body(batches: list[torch.Tensor]) -> None:
        loop.plain(batches)
        theta = next(loop.model.parameters())
        theta.data.copy_(theta.nextafter(torch.tensor(2.0)))

    result = loop.steps(1, body)
    assert result.ok, result.verdict
    assert result.reference.endswith("float64")
    assert all(torch.equal(a, b) for a, b in zip(held, [x for h in kept.held for x in (h.theta, h.after)], strict=True))
    assert first.shares is not None


def test_noise_is_the_scatter_of_the_batches_over_their_mean():
    loop = Loop(sgd, tells=True)
    result = loop.steps(1, k=4)
    batches = loop.check.batches
    assert batches is not None
    fresh = Loop(sgd)  # the parameters before the step
    each = [
        flat(torch.autograd.grad((fresh.model(b) - b[:, :2].sin()).square().mean(), list(fresh.model.parameters())))
        for b in batches
    ]
    scatter = torch.stack(each).var(0).sum() / 4
    assert result.noise == pytest.approx(float(scatter / torch.stack(each).mean(0).square().sum()), rel=1e-9)


def test_clipping_that_is_told_is_no_alarm():
    loop = Loop(sgd, tells=True, gradient=clip)

    def body(batches: list[torch.Tensor]) -> None:
        loop.backward(batches)
        norm = flat(gradient(p) for p in loop.model.parameters()).norm()
        for p in loop.model.parameters():
            p.grad.mul_(min(1.0, 0.1 / float(norm)))  # type: ignore[union-attr]
        loop.optimizer.step()

    assert loop.steps(2, body).ok


def test_a_class_of_ones_own_is_held_to_the_class_that_is_named():
    class Own(O.Optimizer):
        def __init__(self, parameters: Any):
            super().__init__(parameters, {"lr": LR})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            for p in self.param_groups[0]["params"]:
                p.add_(p.grad, alpha=LR)  # ascends

    make = lambda model: Own(model.parameters())  # noqa: E731
    loop = Loop(make)
    assert loop.steps(1).ok  # what a copy of it does, too
    assert "only what a copy of it" in loop.check.result.notes[0]  # type: ignore[union-attr]
    held = Loop(make, reference=O.SGD).steps(1)
    assert held.ok is False
    assert held.tensors[0].factor == pytest.approx(-1)


def test_json_and_page():
    result = next(m for m in MUTATIONS if m.name == "betas swapped").run()
    plain = json.loads(result.to_json())
    assert plain["ok"] is False
    assert plain["causes"][0]["name"] == "betas swapped"
    assert "betas swapped" in result.to_html()


def test_bad_input():
    model = nn.Linear(2, 1)
    optimizer = O.AdamW(model.parameters())
    with pytest.raises(BadType, match="optimizer must be a torch optimizer, got Linear"):
        ml.check_step(model)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="only with model and criterion"):
        ml.check_step(optimizer, batches=[1])
    with pytest.raises(BadType, match="reference must be a class"):
        ml.check_step(optimizer, reference=optimizer)  # type: ignore[arg-type]
    with ml.check_step(optimizer) as check:
        pass
    assert check.result is not None
    assert check.result.ok is None
    assert "no step was taken" in check.result.verdict
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), ml.check_step(optimizer):
        raise ZeroDivisionError
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not optimizer._optimizer_step_pre_hooks
