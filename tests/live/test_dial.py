"""The dial: what it is at 0, at -1, between and beyond, full batch and along mini-batches; that it is a torch optimizer."""

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

import memoryless as ml
from memoryless.flat import flat
from memoryless.live.dial import Dial
from memoryless.live.transport import gain
from memoryless.methods.method_optimizer import MethodOptimizer
from tests.live.monitoring.monitored import criterion, noisy_model, plain_model
from tests.problems import FULL_BATCH, THETA

Make = Callable[[Any, float], Optimizer]
BETAS = (0.9, 0.95)
LION = {"betas": BETAS, "weight_decay": 0.1, "smoothing": 0.1}

LIVE: dict[str, tuple[Make, Callable[[float], Any]]] = {
    "heavy_ball": (lambda p, lr: SGD(p, lr, 0.9), lambda lr: ml.HeavyBall(lr, 0.9)),
    "dampened": (lambda p, lr: SGD(p, lr, 0.9, 0.4, 0.1), lambda lr: ml.HeavyBall(lr, 0.9, 0.4, 0.1)),
    "nesterov": (lambda p, lr: SGD(p, lr, 0.9, nesterov=True), lambda lr: ml.Nesterov(lr, 0.9)),
    "adam": (lambda p, lr: Adam(p, lr, BETAS, 0.01, 0.1), lambda lr: ml.Adam(lr, BETAS, 0.01, 0.1)),
    "adamw": (lambda p, lr: AdamW(p, lr, BETAS, 0.01, 0.1), lambda lr: ml.AdamW(lr, BETAS, 0.01, 0.1)),
    "rmsprop": (lambda p, lr: RMSprop(p, lr, 0.95, 0.01), lambda lr: ml.RMSprop(lr, 0.95, 0.01)),
    "lion": (lambda p, lr: MethodOptimizer(p, ml.Lion(lr, **LION)), lambda lr: ml.Lion(lr, **LION)),
    "nadam": (lambda p, lr: NAdam(p, lr, BETAS, 0.01), lambda lr: ml.NAdam(lr, BETAS, 0.01, momentum_decay=4e-3)),
    "amsgrad": (lambda p, lr: Adam(p, lr, amsgrad=True), lambda lr: black_box(lambda p: Adam(p, lr, amsgrad=True))),
    "adamax": (lambda p, lr: Adamax(p, lr), lambda lr: black_box(lambda p: Adamax(p, lr))),
}
# torch's NAdam multiplies its schedule up in float32.
LOOSE = {"nadam": 1e-9}
SIZES = [2, len(THETA) - 2]


def black_box(make: Callable[[Any], Optimizer]) -> ml.TorchMethod:
    return ml.TorchMethod(make, [(size,) for size in SIZES])


def full_batch(make: Make, lr: float, s: Any, steps: int, **options: Any) -> tuple[Tensor, Dial]:
    parameters = [nn.Parameter(x.clone()) for x in THETA.split(SIZES)]
    dial = ml.dial(make(parameters, lr), s, **options)
    path = [THETA]
    for _ in range(steps):
        for p, g in zip(parameters, FULL_BATCH.gradient(path[-1]).split(SIZES), strict=True):
            p.grad = g.clone()
        dial.step()
        path.append(flat(parameters).detach().clone())
    return torch.stack(path), dial


@pytest.mark.parametrize("name", LIVE)
def test_full_batch_minus_one_is_the_frozen_iteration(name: str):
    make, method = LIVE[name]
    path, dial = full_batch(make, 0.01, -1.0, 20)
    loss, tolerance = ml.Loss.of(FULL_BATCH, THETA), LOOSE.get(name, 1e-13)
    assert dial.off is None
    assert float((path - ml.trajectory(method(0.01), loss, 20, kind="frozen")).abs().max()) < tolerance
    assert float((path - ml.trajectory(method(0.01), loss, 20)).abs().max()) > 1e-3


SHORT = (0.5, 0.8)  # the slopes want lr far below what the memories are long
SMOOTH: dict[str, tuple[Make, Callable[[float], Any], int]] = {
    "heavy_ball": (lambda p, lr: SGD(p, lr, 0.5), lambda lr: ml.HeavyBall(lr, 0.5), 40),
    "nesterov": (lambda p, lr: SGD(p, lr, 0.5, nesterov=True), lambda lr: ml.Nesterov(lr, 0.5), 40),
    "adamw": (lambda p, lr: AdamW(p, lr, SHORT, 0.5, 0.1), lambda lr: ml.AdamW(lr, SHORT, 0.5, 0.1), 100),
    "lion": (lambda p, lr: MethodOptimizer(p, ml.Lion(lr, SHORT, 0.1, 0.5)), lambda lr: ml.Lion(lr, SHORT, 0.1, 0.5), 100),
}


@pytest.mark.parametrize(
    ("name", "s"), [("heavy_ball", -0.5), ("heavy_ball", 1.0), ("nesterov", 1.0), ("adamw", 1.0), ("lion", 1.0)]
)
def test_strength_follows_the_correction_scaled_by_one_plus_s(name: str, s: float):
    make, method, first = SMOOTH[name]
    loss, errors = ml.Loss.of(FULL_BATCH, THETA), []
    for steps in (first, 2 * first):
        lr = 0.2 / steps
        of, theta = method(lr), THETA
        for n in range(steps):
            c = ml.correction(of, loss, theta, step=n)
            theta = theta - lr * (c.F + (1 + s) * c.M)
        errors.append(float((full_batch(make, lr, s, steps)[0][-1] - theta).norm()))
    assert abs(float(torch.tensor(errors[0] / errors[1]).log2()) - 2) < 0.15, errors
    assert float((full_batch(make, lr, 0.0, steps)[0][-1] - theta).norm()) > 10 * errors[-1]


def test_moved_betas_and_groups_are_honoured():
    """F by a literal twin: a new optimizer fed n + 1 times with the same gradient, each step's own betas."""

    def betas(n: int) -> tuple[float, float]:
        return (0.8 + 0.01 * n, 0.95 - 0.02 * n)

    p = [nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in ([1.0, -2.0], [0.5])]
    dial = ml.dial(AdamW([{"params": p[:1]}, {"params": p[1:], "lr": 0.03, "weight_decay": 0.3}], 0.1, eps=0.1), -1.0)
    for n in range(6):
        for group in dial.param_groups:
            group["betas"] = betas(n)
        before = flat(p).detach().clone()
        for each in p:
            each.grad = each.detach() ** 3
        twin = [nn.Parameter(each.detach().clone()) for each in p]
        other = AdamW([{"params": twin[:1]}, {"params": twin[1:], "lr": 0.03, "weight_decay": 0.3}], 0.1, eps=0.1)
        for k in range(n + 1):
            for group in other.param_groups:
                group["betas"] = betas(k)
            with torch.no_grad():
                for each, start, mine in zip(twin, before.split([2, 1]), p, strict=True):
                    each.copy_(start)
                    assert mine.grad is not None
                    each.grad = mine.grad.clone()
            other.step()
        dial.step()
        torch.testing.assert_close(flat(p), flat(twin), rtol=0, atol=1e-14)


def mini_batches(steps: int, micro: int = 1) -> list[list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        return torch.randn(6, 4, generator=generator), torch.randn(6, 1, generator=generator)

    return [[draw() for _ in range(micro)] for _ in range(steps)]


def clip(g: Tensor) -> Tensor:
    return g * min(1.0, 0.5 / float(g.norm()))


def train(
    make: Make,
    s: Any = None,
    steps: int = 12,
    micro: int = 1,
    model: Callable[[], nn.Module] = plain_model,
    mini: bool = False,
    stop: Callable[[int, nn.Module, Any, Any], None] = lambda n, net, optimizer, scheduler: None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """A loop with clipping, a schedule, accumulation and a scaler, dialled or not (s None)."""
    torch.manual_seed(3)
    net = model()
    optimizer: Any = make(net.parameters(), 1e-2)
    if s is not None:
        given = {"model": net, "criterion": criterion, "gradient": clip} if mini else {}
        optimizer = ml.dial(optimizer, s, **given, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # pyright: ignore[reportPrivateImportUsage]
    for n, batches in enumerate(mini_batches(steps, micro)):
        stop(n, net, optimizer, scheduler)
        optimizer.zero_grad()
        for batch in batches:
            scaler.scale(criterion(net, batch) / micro).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        scaler.step(optimizer, **({"batch": batches} if mini and s is not None else {}))
        scaler.update()
        scheduler.step()
    return flat(net.parameters()).detach(), optimizer


def lion(p: Any, lr: float) -> Optimizer:
    return MethodOptimizer(p, ml.Lion(lr))


TORCH = [LIVE[name][0] for name in ("heavy_ball", "adam", "adamw", "rmsprop", "nadam", "amsgrad")]


ALONG = [(make, mini) for make in (*TORCH, lion) for mini in (False, True) if not (mini and make is TORCH[-1])]
"""A black box (amsgrad) is full batch."""


@pytest.mark.parametrize(("make", "mini"), ALONG)
def test_strength_0_is_the_optimizer_bit_for_bit(make: Make, mini: bool):
    plain, _ = train(make, micro=2, model=noisy_model)
    for s in (0.0, lambda n: 0.0):
        found, dial = train(make, s, micro=2, model=noisy_model, mini=mini)
        assert dial.off is None
        assert torch.equal(found, plain)
    assert not torch.equal(train(make, -1.0, micro=2, model=noisy_model, mini=mini)[0], plain)


@pytest.mark.parametrize("options", [{}, {"mini": True}, {"mini": True, "twin": "same"}, {"placebo": "scrambled"}])
def test_killed_and_resumed_is_bit_identical(options: dict[str, Any], tmp_path):
    make, model = LIVE["adamw"][0], noisy_model
    whole, _ = train(make, -0.7, model=model, **options)

    def save(n: int, net: nn.Module, optimizer: Any, scheduler: Any) -> None:
        if n == 7:
            parts = (net, optimizer, scheduler)
            torch.save([*(part.state_dict() for part in parts), torch.get_rng_state()], tmp_path / "run.pt")

    def load(n: int, net: nn.Module, optimizer: Any, scheduler: Any) -> None:
        if n == 7:
            *states, rng = torch.load(tmp_path / "run.pt", weights_only=True)
            for part, state in zip((net, optimizer, scheduler), states, strict=True):
                part.load_state_dict(state)
            torch.set_rng_state(rng)

    train(make, -0.7, model=model, stop=save, **options)

    # The first seven steps of the second process are another run's.
    def other(p: Any, lr: float) -> Optimizer:
        return make(p, 3 * lr)

    again, _ = train(other, -0.7, model=model, stop=load, **options)
    assert torch.equal(whole, again)


class Side(nn.Module):
    """Many runs side by side: a parameter for each, which the others' gradients do not reach."""

    def __init__(self, runs: int):
        super().__init__()
        self.theta = nn.Parameter(START.repeat(runs, 1))

    def forward(self, x: Tensor) -> Tensor:
        quadratic = (self.theta @ A * self.theta).sum() / 2 + (self.theta * b).sum()
        return quadratic + (x * ((self.theta @ A_x * self.theta).sum(1, keepdim=True) / 2 + self.theta @ b_x[:, None])).sum()


START, b, b_x = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, -0.7], [0.2, -0.5], [0.4, 0.3]))
A, A_x = (torch.tensor(x, dtype=torch.float64) for x in ([[1.0, 0.3], [0.3, 0.6]], [[0.35, -0.2], [-0.2, 0.25]]))


def side_by_side(make: Make, lr: float, s: float, signs: Tensor, **options: Any) -> Tensor:
    """The batch of step n has L + x L', x = +-1 for each run: the mean over all runs is exact where all signs occur."""
    model = Side(len(signs))
    dial = ml.dial(make(model.parameters(), lr), s, model=model, criterion=lambda model, x: model(x), **options)
    for x in signs.T:
        dial.zero_grad()
        model(x[:, None]).backward()
        dial.step(batch=x[:, None])
    assert dial.off is None
    return model.theta.detach()


def same_batches(lr: float, signs: Tensor, betas: Sequence[float], eps: float = 0.0) -> Tensor:
    """The literal twin, F[n](theta; same batches): sums over all past batches at the present theta. One beta is heavy ball."""
    theta = START.repeat(len(signs), 1)
    for n in range(signs.shape[1]):
        past = [(theta @ A + b) + signs[:, n - k, None] * (theta @ A_x + b_x) for k in range(n + 1)]
        means = [
            sum(beta**k * g ** (l + 1) for k, g in enumerate(past)) / ((1 - beta ** (n + 1)) / (1 - beta))
            for l, beta in enumerate(betas)
        ]
        F = means[0] / (means[1] ** 0.5 + eps) if len(betas) > 1 else means[0] * (1 - betas[0] ** (n + 1)) / (1 - betas[0])
        theta = theta - lr * F
    return theta


def every(steps: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=steps)), dtype=torch.float64)


def heavy_ball(p: Any, lr: float) -> Optimizer:
    return SGD(p, lr, 0.5)


def test_transported_heavy_ball_has_the_mean_of_the_memoryless_path_of_fresh_batches():
    """All 2^n orders of two kinds of batches; F is linear there, so that the mean of fresh batches is that of the mean loss."""
    n, lr = 8, 0.05
    theta = START
    for k in range(n):
        theta = theta - lr * (1 - 0.5 ** (k + 1)) / 0.5 * (theta @ A + b)
    torch.testing.assert_close(side_by_side(heavy_ball, lr, -1.0, every(n)).mean(0), theta, rtol=0, atol=1e-14)
    plain = side_by_side(heavy_ball, lr, 0.0, every(n)).mean(0)
    assert float((plain - theta).norm()) > 1e-2


def test_with_the_batches_effect_on_themselves_heavy_ball_follows_the_same_batches():
    own, without = [], []
    for n in (6, 12):
        signs, lr = every(n), 0.3 / n
        twin = same_batches(lr, signs, (0.5,)).mean(0)
        own.append(float((side_by_side(heavy_ball, lr, -1.0, signs, twin="same").mean(0) - twin).norm()))
        without.append(float((side_by_side(heavy_ball, lr, -1.0, signs).mean(0) - twin).norm()))
    assert float(torch.tensor(own[0] / own[1]).log2()) > 1.9
    assert float(torch.tensor(without[0] / without[1]).log2()) < 1.5
    assert own[1] < 0.2 * without[1]


def test_with_the_batches_effect_on_themselves_adam_follows_the_same_batches():
    """Phi is not linear: of fresh batches a term of first order in lr is left, a per cent of memory's effect."""
    generator, betas = torch.Generator().manual_seed(0), (0.9, 0.95)

    def adam(p: Any, lr: float) -> Optimizer:
        return Adam(p, lr, betas, 0.1)

    plain, fresh, same = list[float](), list[float](), list[float]()
    for n in (64, 128):
        half = (2 * torch.randint(2, (1500, n), generator=generator) - 1).double()
        signs, lr = torch.cat([half, -half]), 0.4 / n
        twin = same_batches(lr, signs, betas, 0.1).mean(0)
        given: dict[str, Any] = {"second": (0.95, 0.1)}
        plain.append(float((side_by_side(adam, lr, 0.0, signs).mean(0) - twin).norm()))
        fresh.append(float((side_by_side(adam, lr, -1.0, signs, **given).mean(0) - twin).norm()))
        same.append(float((side_by_side(adam, lr, -1.0, signs, **given, twin="same").mean(0) - twin).norm()))
    assert plain[1] > 2e-3
    assert fresh[1] < 0.02 * plain[1]
    assert same[1] < 0.003 * plain[1]
    assert float(torch.tensor(same[0] / same[1]).log2()) > 1.3, same


@pytest.mark.parametrize("make", [LIVE[name][0] for name in ("heavy_ball", "nesterov", "adamw", "rmsprop", "lion", "nadam")])
def test_transport_of_one_repeated_batch_is_the_full_batch_dial(make: Make):
    """The same batch at each step, second moments carried by their own beta: m_F = c g, v_F = c g^2 exactly."""
    signs = torch.ones(1, 12, dtype=torch.float64)
    found = side_by_side(make, 0.01, -0.6, signs, second=(0.999, 0.0))
    model = Side(1)
    dial = ml.dial(make(model.parameters(), 0.01), -0.6)
    for _ in range(12):
        dial.zero_grad()
        model(torch.ones(1, 1, dtype=torch.float64)).backward()
        dial.step()
    torch.testing.assert_close(found, model.theta.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("s", [-1.0, -0.5, 1.0])
def test_audit_run_finds_the_effect_that_the_dial_says(s: float):
    def of(s: float) -> tuple[ml.Loss, Dial, nn.Parameter]:
        theta = nn.Parameter(THETA.clone())
        loss = ml.Loss.of(lambda t: (t**4).sum() / 4 + (1 - t.cos()).sum(), theta)
        return loss, ml.dial(Adam([theta], 0.01, (0.9, 0.99)), s), theta

    loss, dial, _ = of(s)
    run = ml.audit_run(dial, loss, 10, stops=[3, 10], betas=None, compare=[])
    loss, dial, theta = of(s)
    for n in range(10):
        theta.grad = loss.gradient(theta.detach())
        dial.step()
        if n + 1 in (3, 10):
            undialled = ml.audit(dial.dialled, loss).measured
            measured = run.stops[0 if n == 2 else 1].audit.measured
            assert measured is not None
            assert undialled is not None
            assert float((measured - (1 + s) * undialled).norm()) < 1e-9 * float(undialled.norm())


@pytest.mark.parametrize("kind", ["permuted", "scrambled"])
def test_placebo_is_the_same_term_elsewhere_in_each_tensor(kind: str):
    paths = {}
    for placebo, s in ((kind, -1.0), (None, -1.0), (None, 0.0)):
        torch.manual_seed(0)
        net = plain_model().double()
        dial = ml.dial(Adam(net.parameters(), 1e-2), s, placebo=placebo, seed=5)
        for _ in range(2):
            dial.zero_grad()
            criterion(net, (torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))).backward()
            dial.step()
        paths[placebo, s] = [p.detach() for p in net.parameters()]
    for fake, true, plain in zip(*paths.values(), strict=True):
        terms = [(x - plain).reshape(-1) for x in (fake, true)]
        if kind == "scrambled":
            assert len(plain) == 1 or not torch.equal(terms[0].sign().sort().values, terms[1].sign().sort().values)
            terms = [x.abs() for x in terms]
        torch.testing.assert_close(*(x.sort().values for x in terms), rtol=0, atol=1e-16)
    assert any(not torch.equal(fake, true) for fake, true, _ in zip(*paths.values(), strict=True))


def test_it_is_a_torch_optimizer():
    net = plain_model()
    inner = Adam(net.parameters())
    dial, seen = ml.dial(inner, lambda n: -1.0), []
    assert isinstance(dial, Optimizer)
    assert dial.param_groups is inner.param_groups
    dial.register_step_pre_hook(lambda *_: seen.append("pre"))
    dial.register_step_post_hook(lambda *_: seen.append("post"))

    def closure() -> Tensor:
        seen.append("closure")
        dial.zero_grad()
        loss = criterion(net, (torch.ones(2, 4), torch.ones(2, 1)))
        loss.backward()
        return loss

    assert float(dial.step(closure).detach()) > 0
    assert seen == ["pre", "closure", "post"]
    twin = copy.deepcopy(dial)
    assert twin.dialled is not inner
    assert twin.param_groups[0]["params"][0] is not inner.param_groups[0]["params"][0]
    extra = nn.Parameter(torch.ones(2))
    dial.add_param_group({"params": [extra], "lr": 0.1})
    extra.grad = torch.ones(2)
    dial.step()  # a tensor without past beside others
    next(net.parameters()).grad = None  # one that is skipped
    dial.step()
    assert [(len(memory.tensors), memory.n) for memory in dial._memories.all] == [(3, 3), (1, 2), (1, 2)]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "strength": (lambda: ml.dial(Adam([nn.Parameter(torch.ones(2))]), float("nan")), "finite"),
    "muon": (lambda: ml.dial(torch.optim.Muon([nn.Parameter(torch.randn(3, 3))])), "by the gradients of others"),
    "adafactor": (lambda: ml.dial(torch.optim.Adafactor([nn.Parameter(torch.randn(3, 3))])), "by the gradients of others"),
    "lbfgs": (lambda: ml.dial(torch.optim.LBFGS([nn.Parameter(torch.ones(2))])), "evaluates the loss within its step"),
    "lion_k": (lambda: ml.dial(MethodOptimizer([nn.Parameter(torch.ones(2))], ml.LionK(K=torch.linalg.norm))), "others"),
    "no optimizer": (lambda: ml.dial(ml.Adam()), "torch optimizer"),  # type: ignore[arg-type]
    "twice": (lambda: ml.dial(ml.dial(Adam([nn.Parameter(torch.ones(2))]))), "dialled already"),
    "half": (lambda: ml.dial(Adam([nn.Parameter(torch.ones(2))]), model=nn.Linear(1, 1)), "both"),
    "black box": (lambda: small(Adamax), "momentum form"),
    "centered": (lambda: small(lambda p: RMSprop(p, centered=True)), "centered"),
    "same": (lambda: small(lion_of, twin="same"), "heavy_ball"),
    "another model": (lambda: small(lambda p: Adam(nn.Linear(2, 2).parameters())), "build both from one model"),
    "second": (lambda: small(Adam, second=(1.5, 0.1)), "second"),
    "no batch": (lambda: small(Adam).step(), "batch=batch"),
    "a batch": (lambda: ml.dial(Adam([nn.Parameter(torch.ones(2))])).step(batch=1), "model= and criterion="),
}


def lion_of(p: Any) -> Optimizer:
    return MethodOptimizer(p, ml.Lion())


def small(make: Callable[[Any], Optimizer], **options: Any) -> Dial:
    net = nn.Linear(2, 1)
    return ml.dial(make(net.parameters()), model=net, criterion=criterion, **options)


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case: str):
    call, words = REFUSED[case]
    with pytest.raises(ml.errors.BadInput, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_steps_behind_an_optimizer_that_does_not_count_are_refused():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    sgd = SGD([p], 0.1, 0.9)
    sgd.step()
    before = p.detach().clone()
    with pytest.raises(ml.errors.BadInput, match="does not count"):
        ml.dial(sgd).step()
    assert torch.equal(p.detach(), before)


def goes_on(
    caplog: pytest.LogCaptureFixture, make: Callable[[nn.Module], Dial], loss: Callable[[nn.Module, Any], Tensor]
) -> str:
    """Trains with what the dial cannot hold, exactly as without it; what it said, once."""
    paths = []
    for with_dial in (True, False):
        torch.manual_seed(0)
        net = plain_model()
        dial = make(net)
        optimizer: Any = dial if with_dial else dial.dialled
        for (batch,) in mini_batches(4):
            optimizer.zero_grad()
            loss(net, batch).backward()
            optimizer.step(**({"batch": batch} if with_dial else {}))
        paths.append(flat(net.parameters()).detach())
        if with_dial:
            assert dial.off is not None
    assert torch.equal(*paths)
    (said,) = {record.message for record in caplog.records}
    return said


@pytest.mark.parametrize("case", ["noise", "scaled"])
def test_a_gradient_that_cannot_be_had_again_is_said_and_the_training_goes_on(case: str, caplog: pytest.LogCaptureFixture):
    def noisy(net: nn.Module, batch: Any) -> Tensor:
        x = batch[0] + torch.randn_like(batch[0])  # before the forward pass, where the generators are looked at
        return criterion(net, (x, batch[1]))

    with caplog.at_level(logging.WARNING, "memoryless"):
        trained = noisy if case == "noise" else lambda net, batch: 3 * criterion(net, batch)
        of = noisy if case == "noise" else criterion
        said = goes_on(caplog, lambda net: ml.dial(Adam(net.parameters()), model=net, criterion=of), trained)
    assert ("model.eval()" if case == "noise" else "give gradient=") in said


def test_a_step_that_is_not_the_methods_is_said(caplog: pytest.LogCaptureFixture):
    p = nn.Parameter(torch.ones(2))
    inner = Adam([p], 0.1)

    def doubled(*_: Any) -> None:
        p.data.mul_(2)

    inner.register_step_post_hook(doubled)
    dial = ml.dial(inner)
    for _ in range(2):
        p.grad = torch.ones(2)
        dial.step()
    assert dial.off is not None
    assert "not that of adam" in dial.off


def test_strengths_that_are_not_finite_are_skipped_and_counted():
    path, dial = full_batch(LIVE["adam"][0], 0.01, lambda n: float("nan") if n % 2 else 0.0, 6)
    assert dial.counts["skipped"] == 3
    assert torch.equal(path, full_batch(LIVE["adam"][0], 0.01, 0.0, 6)[0])


def test_what_cannot_be_held_is_counted_and_said_once(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    net = plain_model()
    dial = ml.dial(Adam(net.parameters(), 0.3), 5.0, model=net, criterion=criterion, second=(0.9, 0.9))
    with caplog.at_level(logging.WARNING, "memoryless"):
        for (batch,) in mini_batches(16):
            dial.zero_grad()
            criterion(net, batch).backward()
            dial.step(batch=batch)
    counts = dial.counts
    assert counts["steps"] == 16
    assert 0 < counts["floored"] < counts["carried"] == 16 * sum(p.numel() for p in net.parameters())
    assert 8 < counts["longer"] <= 15
    assert len(caplog.records) == len(dial.notes) == 2


def test_the_gain_of_a_second_moment_lies_between_its_own_and_the_quickest():
    walk = torch.tensor([[0.03, 1e-5, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(gain(walk, 0.001), torch.tensor([0.03, 0.001, 0.2, 0.001, 0.001]))
    assert gain(walk[:, 0], 0.5) == 0.5


@pytest.mark.parametrize("cached", [2**17, 3])
def test_transport_is_its_formulas_written_out(cached: int, monkeypatch: pytest.MonkeyPatch):
    """Adam along noisy batches against a literal loop; in one piece, and cut into pieces of three."""
    monkeypatch.setattr("memoryless.flat.CACHED", cached)
    lr, (b1, b2), eps, s = 0.02, (0.9, 0.99), 1e-8, -0.8
    torch.manual_seed(0)
    net = plain_model().double()
    dial = ml.dial(Adam(net.parameters(), lr, (b1, b2), eps), s, model=net, criterion=criterion)
    batches = [(x.double(), y.double()) for ((x, y),) in mini_batches(40)]
    shapes = [p.shape for p in net.parameters()]

    def gradient(theta: Tensor, batch: Any) -> Any:
        parts = [x.view(shape) for x, shape in zip(theta.split([shape.numel() for shape in shapes]), shapes, strict=True)]
        values = dict(zip((name for name, _ in net.named_parameters()), parts, strict=True))

        def loss(values: Any) -> Tensor:
            return nn.functional.mse_loss(torch.func.functional_call(net, values, (batch[0],)), batch[1])

        return torch.func.grad(loss)(values)

    def joined(values: dict[str, Tensor]) -> Tensor:
        return torch.cat([x.reshape(-1) for x in values.values()])

    theta = flat(net.parameters()).detach().clone()
    before, S1, S2, d_mean, off_mean, held = theta, 0.0, 0.0, 0.0, 0.0, 0
    m, v, M, V = (torch.zeros_like(theta) for _ in range(4))
    for n, batch in enumerate(batches):
        g, previous = joined(gradient(theta, batch)), joined(gradient(before, batch))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mhat, vhat = m / (1 - b1 ** (n + 1)), v / (1 - b2 ** (n + 1))
        d = g * g - previous * previous if n else torch.zeros_like(g)
        M, V = (M + g - previous if n else M), V + d
        S = b1 * S1 + 1, b2 * S2 + 1
        K = max(min(max(d_mean / off_mean, 1 - b2), 0.2) if n > 1 else 0.0, 1 / S[1])
        off = float((g * g - V).abs().sum())
        M, V = M + (g - M) / S[0], V + K * (g * g - V)
        floor = torch.maximum(0.02 * vhat, M * M / 2)
        held += int((0.02 * vhat > V).sum())
        V = torch.maximum(V, floor)
        if n:
            share = max(0.02, 1 / S2)
            d_mean += share * (float(d.abs().sum()) - d_mean)
            off_mean += share * (off - off_mean)
        S1, S2 = S
        u, F = mhat / (vhat.sqrt() + eps), M / (V.sqrt() + eps)
        before, theta = theta, theta - lr * (u + s * (u - F if n else 0.0))
        dial.zero_grad()
        criterion(net, batch).backward()
        dial.step(batch=batch)
        torch.testing.assert_close(flat(net.parameters()).detach(), theta, rtol=0, atol=1e-12)
    assert dial.counts["floored"] == held


# ---- what a reviewer broke


def linear_run(dial: Any, model: nn.Linear, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        dial.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        dial.step(batch=(x, y))


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def test_what_was_carried_before_a_pause_is_let_go():
    """The full batch as the batch: m_F = c g exactly, unless something old is carried on."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, dtype=torch.float64)
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    dial = ml.dial(SGD(model.parameters(), lr=0.02, momentum=0.9), -1.0, model=model, criterion=mse)
    linear_run(dial, model, x, y, 10)
    dial.strength = 0.0
    linear_run(dial, model, x, y, 20)
    dial.strength = -1.0
    linear_run(dial, model, x, y, 1)
    dial.zero_grad()
    mse(model, (x, y)).backward()
    before, g = flat(model.parameters()).detach().clone(), flat(p.grad for p in model.parameters() if p.grad is not None)
    dial.step(batch=(x, y))
    F = before - flat(model.parameters()).detach()
    torch.testing.assert_close(F, 0.02 * (1 - 0.9**32) / 0.1 * g, rtol=1e-12, atol=0)
    assert dial.off is None


def test_a_schedule_without_a_formula_is_that_of_each_step():
    """Rprop with a moving lr, held to its own steps on the present gradient with each step's lr."""
    theta = nn.Parameter(THETA.clone())
    dial = ml.dial(torch.optim.Rprop([theta], lr=0.01), -1.0)
    lrs = [0.01 * 0.8**n for n in range(6)]
    for n, lr in enumerate(lrs):
        dial.param_groups[0]["lr"] = lr
        theta.grad = FULL_BATCH.gradient(theta.detach())
        g, before = theta.grad.clone(), theta.detach().clone()
        dial.step()
        twin = nn.Parameter(before.clone())
        again = torch.optim.Rprop([twin], lr=lrs[0])
        for k in range(n + 1):
            again.param_groups[0]["lr"] = lrs[k]
            with torch.no_grad():
                twin.copy_(before)
            twin.grad = g.clone()
            again.step()
        torch.testing.assert_close(theta.detach(), twin.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", ["sparse", "unknown group", "memory", "early pass"])
def test_training_goes_on_whatever_comes(case: str):
    torch.manual_seed(0)
    sparse = case == "sparse"
    model = nn.Sequential(nn.Embedding(4, 3, sparse=sparse), nn.Dropout(0.5 if case == "early pass" else 0.0), nn.Linear(3, 1))
    batch = torch.tensor([[0], [1], [2]]), torch.randn(3, 1, 1)
    runs_out = [False]

    def criterion(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if runs_out[0]:
            raise torch.OutOfMemoryError("no more")
        return mse(model, batch)

    kind = SGD if sparse else Adam
    dial = ml.dial(kind(model.parameters(), 0.01), -1.0, model=model, criterion=criterion)
    if case == "early pass":
        model(batch[0])  # a look at the shapes
    if case == "unknown group":
        dial.add_param_group({"params": [nn.Parameter(torch.ones(1))], "amsgrad": True})
        dial.param_groups[1]["params"][0].grad = torch.ones(1)
    for n in range(3):
        dial.zero_grad() if n else None
        mse(model, batch).backward()
        runs_out[0] = case == "memory"
        dial.step(batch=batch)
        runs_out[0] = False
    assert dial.steps == 3
    said = {"sparse": "sparse", "unknown group": "amsgrad", "memory": "no more", "early pass": None}[case]
    assert (dial.off is None) if said is None else (said in (dial.off or ""))


def test_a_dialled_model_is_saved_and_copied(tmp_path: Any):
    model = nn.Linear(3, 1)
    dial = ml.dial(SGD(model.parameters(), lr=0.1, momentum=0.9), model=model, criterion=mse)
    torch.save(model, tmp_path / "model.pt")
    twin = copy.deepcopy(model)
    linear_run(dial, model, torch.randn(4, 3), torch.randn(4, 1), 2)
    twin(torch.randn(2, 3))
    torch.load(tmp_path / "model.pt", weights_only=False)(torch.randn(2, 3))
    assert dial.off is None


@pytest.mark.parametrize("given", [{"second": 0.5}, {"second": 3}, {"seed": "a"}])
def test_more_bad_input(given: dict[str, Any]):
    model = nn.Linear(3, 1)
    with pytest.raises(ml.errors.BadInput, match=next(iter(given))):
        ml.dial(SGD(model.parameters(), lr=0.1), model=model, criterion=mse, **given)
