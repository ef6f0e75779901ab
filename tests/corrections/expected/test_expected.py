"""`expected_correction` against exact enumeration of all orders, its closed form, and itself."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

import memoryless as ml
from memoryless.corrections import sequences
from memoryless.corrections.expansion import expansion
from memoryless.corrections.expected import expected as expected_module
from memoryless.corrections.expected import random_lag
from memoryless.corrections.expected.closed_form import coefficient
from memoryless.corrections.expected.expected import ExpectedCorrection
from memoryless.corrections.sequences import Pool, random_order
from memoryless.errors import NeverForgets
from memoryless.loss.measures import evaluate
from memoryless.loss.point import Point
from memoryless.methods.method import AnyOptimizer, State
from tests.problems import BATCHES, FULL_BATCH, LINEAR, METHODS, THETA, reference_loss, relative_error

LR = 0.01
COUNT = len(BATCHES)
GRADIENTS = torch.stack([wave.gradient(THETA) for wave in BATCHES])
# Equally likely: five steps without replacement, where the second epoch begins with any batch; three steps with it.
EPOCH_AND_ONE = [(*epoch, last) for epoch in itertools.permutations(range(COUNT)) for last in range(COUNT)]
THREE_DRAWS = list(itertools.product(range(COUNT), repeat=3))
ALL_ORDERS = {False: EPOCH_AND_ONE, True: THREE_DRAWS}
BLACK_BOX = ml.TorchMethod(lambda params: torch.optim.Adamax(params, LR, (0.8, 0.9), 0.1), [(len(THETA),)])
METHODS_AND_SEEDS = [*((METHODS[name], seed) for seed, name in enumerate(METHODS)), (lambda lr: BLACK_BOX, len(METHODS))]


def along_a_line(theta: Tensor) -> Tensor:
    """A measure whose change is a projection of M."""
    return theta @ torch.linspace(-1, 2, len(theta)) + 3


MEASURES = (along_a_line, "gradient_1_norm")


def changes(method: AnyOptimizer, M: Tensor) -> list[float]:
    """Of the measures by M."""
    loss = reference_loss()
    values = evaluate(MEASURES, Point(loss, THETA))
    return [-method.lr * float(value.gradient @ M) / value.value for value in values]


def enumerated(method: AnyOptimizer, all_orders: Iterable[Sequence[int]]) -> dict[str, Tensor]:
    """Mean over the orders of F and of both M, each order's by `correction`."""
    loss, found = reference_loss(), []
    for order in all_orders:
        c = expansion(method, Point(loss, THETA), len(order) - 1, order)
        found.append(torch.stack([c.F, c.first().value, c.resummed().value]))
    return dict(zip(("F", "first", "resummed"), torch.stack(found).mean(0), strict=True))


def expected(method: AnyOptimizer, step: int | None, samples: int | None = 200, **options: Any) -> ExpectedCorrection:
    return ml.expected_correction(method, reference_loss(), step=step, samples=samples, **options)


@pytest.mark.parametrize("replacement", [False, True], ids=["permutations", "replacement"])
@pytest.mark.parametrize(("make", "seed"), METHODS_AND_SEEDS, ids=[*METHODS, "black_box"])
def test_mean_over_all_orders(make, seed, replacement):
    method, all_orders = make(LR), ALL_ORDERS[replacement]
    exact = enumerated(method, all_orders)
    for order, samples in (("first", 60 if method is BLACK_BOX else 200), ("resummed", 40)):
        found = expected(
            method,
            len(all_orders[0]) - 1,
            samples,
            order=order,
            seed=seed,
            replacement=replacement,
            measures=[along_a_line],
        )
        M, error = exact[order], found.standard_error
        certain: Tensor = error < 1e-12 * M.norm()  # a coordinate of no group
        assert torch.equal(found.M[certain], M[certain])
        z = ((found.M - M) / error)[~certain]
        # Any coordinate is that far out as rarely as one normal number is by 3 standard errors.
        assert float(z.abs().max()) < student.isf(normal.sf(3) / len(z), samples - 1)
        (effect,) = found.effects
        assert abs(effect.mean - changes(method, M)[0]) < student.isf(normal.sf(3), samples - 1) * effect.standard_error


@pytest.mark.parametrize("name", METHODS)
def test_random_lag_of_one_order_is_equation_9_in_the_mean(name):
    """Exactly: summed over all lags and all places of the sampled steps, with their probabilities."""
    method, n = METHODS[name](LR), 2 * random_lag.POINTS + 3
    order = random_order(COUNT, n + 1, np.random.default_rng(0))
    p = random_lag.lag_probabilities(tuple(v for part in method.parts for v in part.method.variables), n, False)
    ends = np.cumsum(p)

    class Chosen:
        """Lag k, and place u in each stretch."""

        def __init__(self, k: int, u: float):
            self.values = np.array([ends[k - 1] - p[k - 1] / 2, *[u] * random_lag.POINTS])

        def random(self, count: int) -> np.ndarray:
            return self.values

    # floor((stretch + u) k / POINTS) is the same for all u between two multiples of 1 / k.
    lags = range(1, len(p) + 1)
    cells = [(k, (j + 0.5) / k, p[k - 1] / k) for k in lags for j in range(k)]
    draws: Any = ((order, Chosen(k, u)) for k, u, _ in cells if p[k - 1])
    samples = random_lag.random_lags(Pool(method, GRADIENTS, THETA), Point(reference_loss(), THETA), n, False, draws)
    shares = [share for *_, share in cells if share]
    c = ml.correction(method, reference_loss(), batches=order.tolist())
    M = torch.zeros_like(THETA)
    for (F, one, products), share in zip(samples, shares, strict=True):
        assert relative_error(F, c.F) < 1e-13
        assert products == 1
        M += share * one
    assert relative_error(M, c.M) < 1e-11


REPEATS = 100


@pytest.mark.parametrize(
    ("name", "order", "samples", "replacement"),
    [("heavy_ball", "first", 20, False), ("adamw", "first", 20, True), ("rmsprop", "resummed", 8, True)],
)
def test_standard_errors_are_calibrated(name, order, samples, replacement):
    method, all_orders = METHODS[name](LR), ALL_ORDERS[replacement]
    exact = enumerated(method, all_orders)[order]
    truth = np.array(changes(method, exact))
    inside, coordinates, width = np.zeros(len(truth)), 0.0, student.isf(0.025, samples - 1)
    for seed in range(REPEATS):
        found = expected(
            method, len(all_orders[0]) - 1, samples, order=order, seed=seed, replacement=replacement, measures=MEASURES
        )
        mean, error = np.array([(e.mean, e.standard_error) for e in found.effects]).T
        inside += np.abs(mean - truth) < width * error
        coordinates += np.mean(((found.M - exact) / found.standard_error).abs().numpy() < width)
    for coverage in (*inside / REPEATS, coordinates / REPEATS):
        assert 0.90 <= coverage <= 0.99


@pytest.mark.parametrize("replacement", [False, True], ids=["permutations", "replacement"])
@pytest.mark.parametrize("name", sorted(LINEAR))
def test_closed_form_is_the_mean_over_all_orders(name, replacement):
    method, all_orders = METHODS[name](LR), ALL_ORDERS[replacement]
    exact = enumerated(method, all_orders)
    found = expected(method, len(all_orders[0]) - 1, None, replacement=replacement, measures=MEASURES)
    assert relative_error(found.F, exact["F"]) < 1e-13
    assert relative_error(found.M, exact["first"]) < 1e-9
    assert [e.mean for e in found.effects] == pytest.approx(changes(method, exact["first"]), rel=1e-9)
    assert not found.standard_error.any()
    assert found.samples is None


def noise_penalty(theta: Tensor) -> Tensor:
    """E_i |grad L_i - grad L|^2."""
    return torch.stack([(wave.gradient(theta) - FULL_BATCH.gradient(theta)).square().sum() for wave in BATCHES]).mean()


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_heavy_ball_of_many_batches_has_the_modified_loss_of_the_paper(momentum):
    """h beta / (2 (1-beta)^2) |grad L|^2 + h beta / (2 (1-beta) (1+beta)) E_i |grad L_i - grad L|^2 (Section 5.2)."""
    method = ml.HeavyBall(LR, momentum)
    (full, scatter) = (
        torch.func.grad(f)(THETA) for f in (lambda theta: FULL_BATCH.gradient(theta).square().sum(), noise_penalty)
    )
    found = expected(method, None, None, replacement=True)
    P = 1 / (1 - momentum)
    assert relative_error(found.full_batch, P * LR * momentum / (2 * (1 - momentum) ** 2) * full) < 1e-12
    assert relative_error(found.noise, P * LR * momentum / (2 * (1 - momentum) * (1 + momentum)) * scatter) < 1e-12
    # A permutation of B batches is with replacement but for O(1 / B).
    c = momentum / ((1 - momentum) ** 2 * (1 + momentum))
    gaps = [1 - coefficient(method, None, count) / c for count in (10_000, 20_000)]
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("replacement", [False, True], ids=["permutations", "replacement"])
@pytest.mark.parametrize("name", ["heavy_ball", "nesterov"])
def test_the_estimator_recovers_the_closed_form(name, replacement):
    """In the steady state, whose lags are longer than the steps sampled between them and the present."""
    method = METHODS[name](LR)
    exact = expected(method, None, None, replacement=replacement)
    found = expected(method, None, 2000, replacement=replacement)
    assert relative_error(found.M, exact.M) < 0.02
    assert torch.equal(found.full_batch, exact.full_batch)
    assert float(((found.noise - exact.noise) / found.standard_error).abs().max()) < 3.5


# Torch's schedule of NAdam takes 10^5 steps to settle.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "nadam_schedule"])
def test_late_steps_are_the_steady_state(name):
    pool = Pool(METHODS[name](LR), GRADIENTS, THETA)
    n = expected_module._horizon(pool.method)

    def samples(limit: bool) -> Tensor:
        draws = ((random_order(COUNT, n + 1, np.random.default_rng(r)), np.random.default_rng(-r % 7)) for r in range(3))
        return torch.stack(
            [torch.stack(one[:2]) for one in random_lag.random_lags(pool, Point(reference_loss(), THETA), n, limit, draws)]
        )

    assert relative_error(samples(False), samples(True)) < 1e-12


@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize("name", ["adamw", "groups"])
def test_the_split(name, order):
    method = METHODS[name](LR)
    found = expected(method, 7, 8, order=order, measures=MEASURES)
    assert torch.equal(found.full_batch, ml.correction(method, reference_loss(), step=7, order=order).M)
    assert relative_error(found.full_batch + found.noise, found.M) < 1e-15
    for effect, of_full, of_noise in zip(
        found.effects, changes(method, found.full_batch), changes(method, found.noise), strict=True
    ):
        assert effect.full_batch == pytest.approx(of_full, rel=1e-12)
        assert effect.noise == pytest.approx(of_noise, rel=1e-9)
        assert effect.word in ("regularizes", "anti-regularizes", "neutral")


def test_equal_batches_make_no_noise():
    method, loss = METHODS["adamw"](LR), ml.Loss.of([FULL_BATCH] * 3, THETA)
    found = ml.expected_correction(method, loss, step=5, samples=4, order="resummed")
    assert relative_error(found.M, found.full_batch) < 1e-12
    assert relative_error(ml.expected_correction(METHODS["nesterov"](LR), loss, samples=None).noise, 0 * THETA) < 1e-14


def per_sample(beta: float, seed: int, order: Any, samples: int) -> np.ndarray:
    """Change of a measure in each sample, in the steady state."""
    method, loss = ml.AdamW(LR, (0.8, beta), 0.01), reference_loss()
    values = evaluate([along_a_line], Point(loss, THETA))
    (effect,) = expected_module.sampled(
        method, Point(loss, THETA), values, None, expected_module.Plan(samples, seed, order)
    ).effects
    return effect.changes.values


# The same random number now and then draws another lag, and with it another batch.
@pytest.mark.parametrize(("order", "samples", "least"), [("first", 200, 0.25), ("resummed", 20, 0.99)])
def test_methods_share_their_draws(order, samples, least):
    """Though their memories differ in length."""
    one, longer, other_seed = (per_sample(beta, seed, order, samples) for beta, seed in ((0.95, 0), (0.951, 0), (0.951, 1)))
    assert np.corrcoef(one, longer)[0, 1] > least
    assert abs(np.corrcoef(one, other_seed)[0, 1]) < 3 / samples**0.5


@pytest.mark.parametrize("order", ["first", "resummed"])
def test_the_seed_decides(order):
    one, same, other = (expected(METHODS["lion"](LR), 9, 8, order=order, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.M, same.M)
    assert torch.equal(one.standard_error, same.standard_error)
    assert not torch.equal(one.M, other.M)


def recorded_orders(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Orders drawn from now on."""
    drawn: list[np.ndarray] = []

    def recorded(*arguments: Any) -> np.ndarray:
        drawn.append(random_order(*arguments)[::-1])
        return drawn[-1][::-1]

    monkeypatch.setattr(expected_module, "random_order", recorded)
    return drawn


@pytest.mark.parametrize("order", ["first", "resummed"])
@pytest.mark.parametrize(
    "method", [METHODS["custom"](LR), METHODS["groups"](LR), BLACK_BOX], ids=["custom", "groups", "black_box"]
)
def test_whole_orders_are_their_corrections(method, order, monkeypatch):
    drawn = recorded_orders(monkeypatch)
    found = expected(method, 6, 3, order=order, whole=True)
    exact = [ml.correction(method, reference_loss(), order=order, batches=batches.tolist()) for batches in drawn]
    M = torch.stack([c.M for c in exact])
    assert relative_error(found.F, torch.stack([c.F for c in exact]).mean(0)) < 1e-14
    assert relative_error(found.M, M.mean(0)) < 1e-14
    assert relative_error(found.standard_error, M.std(0) / 3**0.5) < 1e-9
    assert found.products == sum(c.products for c in exact)


def test_products_are_counted(monkeypatch):
    spent = []
    of_batch = ml.Loss.linearize

    def counting(self: ml.Loss, theta: Tensor, batch: int | None = None, products: int | None = None) -> Any:
        gradient, product = of_batch(self, theta, batch, products)
        return gradient, lambda v: (spent.append(batch), product(v))[1]

    monkeypatch.setattr(ml.Loss, "linearize", counting)
    found = expected(METHODS["adamw"](LR), 7, 20)
    assert found.products == 20 == len(spent) - spent.count(None)
    assert expected(METHODS["adamw"](LR), 0, 20).products == 0


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("name", METHODS)
def test_updates_of_a_pool_are_the_steps_of_the_method(name, first, monkeypatch):
    monkeypatch.setattr(sequences, "ROWS", 4 * len(THETA))  # blocks of four steps
    method = METHODS[name](LR)
    order = random_order(COUNT, 11, np.random.default_rng(1), replacement=True)

    begun = method.init(THETA)
    state: Any = begun._replace(n=first) if isinstance(begun, State) else tuple(part._replace(n=first) for part in begun)
    literal = []
    for i in order:
        state, F = method.update(state, GRADIENTS[i], THETA)
        literal.append(F)
    blocks = list(Pool(method, GRADIENTS, THETA).updates(order, first))
    assert [low for low, _ in blocks] == [0, 4, 8]
    assert relative_error(torch.cat([F for _, F in blocks]), torch.stack(literal)) < 1e-13


@pytest.mark.parametrize("step", [2, 7, 8, 9, None])
def test_an_order_is_made_of_epochs(step, monkeypatch):
    """The first begins at step 0; in the steady state the present is anywhere in one."""
    drawn = recorded_orders(monkeypatch)
    expected(METHODS["nesterov"](LR), step, 40)
    phases = set()
    for order in drawn:

        def fits(phase: int, order: np.ndarray = order) -> bool:
            epochs = [order[:phase], *(order[i : i + COUNT] for i in range(phase, len(order), COUNT))]
            return all(len(set(epoch)) == len(epoch) for epoch in epochs)

        fitting = [phase for phase in (range(COUNT) if step is None else [0]) if fits(phase)]
        assert len(fitting) == 1
        phases |= set(fitting)
    assert phases == (set(range(COUNT)) if step is None else {0})


def test_too_few_samples_says_how_many_would_do():
    method, wanted = METHODS["rmsprop"](LR), 0.04
    message = r"40 samples give the change of the gradient 1-norm to .* 0.04: about \d+ would do$"
    with pytest.raises(ml.errors.TooFewSamples, match=message) as caught:
        expected(method, 7, 40, measures=["gradient_1_norm"], error=wanted)
    assert caught.value.so_far.samples == 40
    enough = int(str(caught.value).split("about ")[1].split()[0])
    # The spread that 40 samples show is itself uncertain by a tenth to a third.
    assert expected(method, 7, enough, measures=["gradient_1_norm"]).relative_error < 1.5 * wanted
    assert expected(method, 7, 4 * enough, measures=["gradient_1_norm"], error=wanted).relative_error <= wanted


def test_what_may_be_0_needs_an_unknown_number_of_samples():
    with pytest.raises(ml.errors.TooFewSamples, match=r"M to .* would do, a guess as long as it cannot be told from 0$"):
        expected(METHODS["adamw"](LR), 7, 20, error=0.01)


def test_nothing_past_is_known_without_error():
    found = expected(METHODS["adamw"](LR), 0, 4, error=0.01, measures=["gradient_1_norm"])
    assert not found.M.any()
    assert found.relative_error == 0
    assert found.effects[0].word == "neutral"


FORGETS_NOTHING = ml.Method(LR, (ml.Momentum(1.0),), lambda f, m, theta: m[0])
BAD = {
    "one_batch": (lambda: ml.expected_correction(ml.Adam(), ml.Loss.of(BATCHES[0], THETA)), "at least two batches, got 1"),
    "one_sample": (lambda: expected(ml.Adam(), 3, 1), "samples must be at least 2, or None .* got 1"),
    "samples": (lambda: expected(ml.Adam(), 3, "many"), "samples must be an integer >= 1, got 'many'"),  # pyright: ignore[reportArgumentType]
    "step": (lambda: expected(ml.Adam(), -1), r"step must be None \(steady state\) or an integer >= 0, got -1"),
    "order": (lambda: expected(ml.Adam(), 3, order="second"), "order must be 'first' or 'resummed', got 'second'"),
    "error": (lambda: expected(ml.Adam(), 3, error=0), "error must be a positive .* got 0"),
    "measure": (lambda: expected(ml.Adam(), 3, measures=["size"]), "unknown measure 'size'"),
    "black_box_at_rest": (lambda: expected(BLACK_BOX, None), "steady state of a black box .* give step=n"),
    "black_box_closed": (lambda: expected(BLACK_BOX, 3, None), "closed form .* momentum form; give samples"),
    "resummed_closed": (lambda: expected(ml.HeavyBall(), 3, None, order="resummed"), "closed form is of first order"),
    "adam_closed": (lambda: expected(ml.Adam(), 3, None), r"adam\(.* is not linear in the gradient"),
    "groups_closed": (lambda: expected(METHODS["groups"](LR), 3, None), "is not linear in the gradient"),
    "too_long": (lambda: expected(ml.HeavyBall(LR, 0.9999), None, None), "remembers .* too many for the closed form"),
    "never_fades": (lambda: expected(FORGETS_NOTHING, None), "never fades"),
    "never_fades_closed": (lambda: expected(FORGETS_NOTHING, None, None), "never fades"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, NeverForgets) is case.startswith("never")
