"""Does it forget? One judgement from a momentum form, a black box's kernel and its steady state."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adam, Optimizer

import memoryless as ml
from memoryless.errors import BadInput, NeverForgets, NoSteadyState, NotResolved
from memoryless.methods.black_box.torch_method import TorchMethod
from memoryless.methods.fading import experiment
from tests.problems import THETA, reference_loss

SHAPES = [(2, 3)]
Rule = Callable[[dict[str, Any], Tensor, Tensor], Tensor]


class Custom(Optimizer):
    """p <- p - lr rule(state, p, gradient)."""

    def __init__(self, params: Any, rule: Rule):
        super().__init__(params, {"lr": 0.01})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.sub_(self.rule(self.state[p], p, p.grad), alpha=0.01)


def of(rule: Rule) -> TorchMethod:
    return TorchMethod(lambda p: Custom(p, rule), SHAPES)


def count(state: dict[str, Any]) -> int:
    state["count"] = state.get("count", 0) + 1
    return state["count"]


def towards_start(state, p, g):
    return g + 0.1 * (p - state.setdefault("start", p.clone()))


def by_first_norm(state, p, g):
    return g / state.setdefault("norm", g.norm())


def by_first_norm_as_number(state, p, g):
    return g / state.setdefault("norm", g.norm().item())


def by_first_signs(state, p, g):
    return g * (1 + 0.5 * state.setdefault("up", g > 0))


def calibrated(state, p, g):
    """The mean square of the first three gradients, for ever."""
    v = state.setdefault("v", torch.zeros_like(p))
    if count(state) <= 3:
        v.add_(g * g / 3)
    return g / (v.sqrt() + 0.1)


def summed(state, p, g):
    return g / state.setdefault("v", torch.zeros_like(p)).add_(g * g).sqrt()


def longer_and_longer(state, p, g):
    n = count(state)
    return state.setdefault("m", torch.zeros_like(p)).lerp_(g, 10 / (10 + n)).clone()


NEVER = [towards_start, by_first_norm, by_first_norm_as_number, by_first_signs, calibrated, summed, longer_and_longer]


@pytest.mark.parametrize("rule", NEVER)
def test_never_fades(rule: Rule):
    found = ml.memory_kernel(of(rule), horizon=256)
    assert found.judgement == "never fades", found.evidence
    assert found.decays is False
    with pytest.raises(NeverForgets, match=r"give step=n$"):
        ml.correction(of(rule), reference_loss())


@pytest.mark.parametrize("rule", [towards_start, by_first_norm])
def test_what_was_written_once_grows_with_n(rule: Rule):
    sizes = [float(ml.correction(of(rule), reference_loss(), THETA, step=n).M.norm()) for n in (10, 50, 250)]
    assert sizes[1] / sizes[0] == pytest.approx(5, rel=0.05)
    assert sizes[2] / sizes[1] == pytest.approx(5, rel=0.05)


def emptied(state, p, g):
    v = state.setdefault("v", torch.zeros_like(p))
    if count(state) % 20 == 0:
        v.zero_()
    return g / v.add_(g * g).sqrt()


def restarted(state, p, g):
    m = state.setdefault("m", torch.zeros_like(p))
    return (m.zero_() if count(state) % 30 == 0 else m).add_(g).clone()


def anchored_anew(state, p, g):
    """Towards where it was up to 25 steps ago."""
    if count(state) % 25 == 1:
        state["anchor"] = p.clone()
    return g + 0.1 * (p - state["anchor"])


def ring(state, p, g):
    """The mean of the last ten gradients, each written over the oldest."""
    kept = state.setdefault("kept", p.new_zeros(10, *p.shape))
    kept[count(state) % 10] = g
    return kept.mean(0)


@pytest.mark.parametrize("rule", [emptied, restarted, anchored_anew, ring])
def test_emptied_periodically_fades_without_a_steady_state(rule: Rule):
    found = ml.memory_kernel(of(rule), horizon=256)
    assert found.judgement == "fades", found.evidence
    with pytest.raises(NoSteadyState) as raised:
        ml.correction(of(rule), reference_loss())
    assert not isinstance(raised.value, NeverForgets)


def unread(state, p, g):
    """A first gradient kept for the record."""
    state.setdefault("first", g.clone())
    return state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(g).clone()


def late(state, p, g):
    """Gradients wait three steps in a queue."""
    queue = state.setdefault("queue", [torch.zeros_like(p) for _ in range(3)])
    queue.append(g.clone())
    return queue.pop(0)


def queue_of_ten(state, p, g):
    """The mean of a list of ten gradients, full of zeros at first."""
    queue = state.setdefault("queue", [torch.zeros_like(p) for _ in range(10)])
    queue.append(g.clone())
    queue.pop(0)
    return torch.stack(queue).mean(0)


def deque_of_ten(state, p, g):
    """Full of the first gradient at first."""
    queue = state.setdefault("queue", deque([g.clone()] * 10, maxlen=10))
    queue.append(g.clone())
    return torch.stack(list(queue)).mean(0)


def window(state, p, g):
    """One tensor that shifts."""
    state["window"] = torch.cat([state.get("window", p.new_zeros(10, *p.shape))[1:], g[None]])
    return state["window"].mean(0)


def by_a_number(state, p, g):
    """An average of a constant, kept as a number, as of the learning rate."""
    state["scale"] = 0.9 * state.get("scale", 0.0) + 0.1
    return state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(g) * state["scale"]


@pytest.mark.parametrize("rule", [unread, late, queue_of_ten, deque_of_ten, window, by_a_number])
def test_fades(rule: Rule):
    found = ml.memory_kernel(of(rule))
    assert found.judgement == "fades", found.evidence
    steady, finite = (ml.correction(of(rule), reference_loss(), step=n) for n in (None, 400))
    torch.testing.assert_close(steady.M, finite.M, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999999, 1 - 1e-10])
def test_one_judgement_from_formula_and_experiment(beta: float):
    method = ml.Adam(lr=0.01, betas=(0.9, beta))
    black_box = TorchMethod(lambda p: Adam(p, lr=0.01, betas=(0.9, beta)), SHAPES)
    expected = "fades" if beta < 0.9999 else "not resolved up to step 1,000,000"
    for each in (method, black_box):
        found = ml.memory_kernel(each, horizon=256)
        assert found.judgement == found.as_dict()["judgement"] == expected, found.evidence
        if found.decays is None:
            with pytest.raises(NotResolved, match=r"not resolved up to step 1,000,000; give step=n$") as raised:
                ml.correction(each, reference_loss())
            assert raised.value.up_to == 1_000_000


def centered(state, p, g):
    """The root of a variance, which rounding makes negative where the gradient stays the same."""
    mean, square = (state.setdefault(name, torch.zeros_like(p)) for name in ("mean", "square"))
    mean.lerp_(g, 0.1)
    square.lerp_(g * g, 0.1)
    return g / ((square - mean * mean - 1e-17).sqrt() + 0.1)


@pytest.mark.parametrize("step", [None, 400])
def test_what_is_not_finite_says_why(step: int | None):
    with pytest.raises(BadInput, match=r"not finite.*, though its gradient is: step\(\) divides by, or takes the root of"):
        ml.correction(of(centered), reference_loss(), step=step)


def test_dampening_one_fades():
    """The buffer is its first gradient times momentum^n: F[n] = 0.9^n g, and what is left of M is as small."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(6))], lr=0.01, momentum=0.9, dampening=1.0)
    method = ml.method_of(optimizer)
    assert ml.memory_kernel(method).judgement == "fades"
    loss = reference_loss()
    n = 30
    found = ml.correction(method, loss, THETA, step=n)
    g = loss.gradient(THETA)
    torch.testing.assert_close(found.F, 0.9**n * g)
    back = 0.01 * sum(0.9**s for s in range(n)) * g  # how far the first gradient's theta lies back
    torch.testing.assert_close(found.M, 0.9**n * loss.curvature(THETA, back))
    assert not ml.correction(method, loss, THETA).M.any()
    with pytest.raises(BadInput, match="dampening 1 keeps every gradient but the first out of the buffer"):
        ml.HeavyBall(lr=0.01, momentum=0.9, dampening=1.0)


def test_a_beta_that_is_one_but_for_rounding():
    beta = 1 - 1e-14
    for each in (ml.Adam(betas=(0.9, beta)), TorchMethod(lambda p: Adam(p, betas=(0.9, beta)), SHAPES)):
        assert ml.memory_kernel(each).judgement == "never fades"
        with pytest.raises(NeverForgets):
            ml.correction(each, reference_loss())


def test_adadelta_fades_in_the_time_that_eps_takes():
    """acc_delta <- (rho + (1 - rho) r) acc_delta + ..., r = g^2/(g^2 + eps): it loses (1 - rho) eps/(g^2 + eps) a step."""
    slow, fast = (TorchMethod(lambda p, eps=eps: Adadelta(p, lr=1e-6, eps=eps), SHAPES) for eps in (1e-6, 10.0))
    with pytest.raises(NotResolved, match="'acc_delta' loses"):
        ml.correction(slow, reference_loss(), THETA)
    steady, finite = (ml.correction(fast, reference_loss(), THETA, step=n) for n in (None, 300))
    torch.testing.assert_close(steady.M, finite.M, rtol=1e-6, atol=1e-12)


def noisy_average(state, p, g):
    """Where the gradient is constant it divides 0 by 0."""
    mean, square = (state.setdefault(name, torch.zeros_like(p)) for name in ("mean", "square"))
    mean.lerp_(g, 0.016)
    square.lerp_(g * g, 0.016)
    return g / (square - mean * mean).sqrt()


def test_the_horizon_grows_until_it_tells(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "HORIZON", 256)
    method = of(noisy_average)
    assert ml.memory_kernel(method, horizon=256).judgement.startswith("not resolved up to step ")
    assert ml.memory_kernel(method).judgement == "fades"


def by_switch(state, p, g):
    """Steps along the coordinate whose average is largest; at the frozen history two are level."""
    m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(g)
    flat = m.flatten()
    return g * (1 + (flat[0] > flat[1]))


def by_rank(state, p, g):
    m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(g)
    return m.flatten().argsort().argsort().view_as(m) * g


def by_sign_of_a_gap(state, p, g):
    m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(0.1 * g)
    return g + torch.sign(m - m.flatten()[0])


@pytest.mark.parametrize("rule", [by_switch, by_rank, by_sign_of_a_gap])
@pytest.mark.parametrize("step", [7, None])
def test_a_jump_has_no_derivative(rule: Rule, step: int | None):
    H = torch.diag(torch.arange(1.0, 7.0))
    theta = 1 / torch.arange(1.0, 7.0)  # every gradient is 1, so that averages are level, and drift apart
    loss = ml.Loss.of(lambda x: x @ H @ x / 2, theta)
    with pytest.raises(BadInput, match=r"it jumps, .* the resummed correction needs none: ml.correction"):
        ml.correction(of(rule), loss, step=step)
    if step is not None:
        assert ml.correction(of(rule), loss, step=step, order="resummed").M.isfinite().all()


def test_a_small_horizon_is_its_own():
    found = ml.memory_kernel(TorchMethod(lambda p: SGD(p, lr=0.1, momentum=0.9), SHAPES), horizon=128)
    assert (found.judgement, found.decays) == ("fades", True)
