"""Bad input: what is called, what it raises, and what the one line says. Expected and received, or where."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memoryless as ml
from memoryless.corrections.correction import Correction
from memoryless.errors import BadInput, BadType, NeverForgets, NotFinite
from tests.problems import BATCHES, THETA, norm, reference_loss, tensor

DATA = [tensor([[1, 1, 1], [2, 0, 1]]), tensor([[0, 1, 0], [1, 1, 0]])]
WEIGHT = tensor([[1, 2, 3]])
COMPLEX = torch.ones(1, 3, dtype=torch.complex64)


def mean(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()


def loss_of(model: nn.Module | None = None, criterion: Any = mean, batches: Any = DATA) -> ml.Loss:
    return ml.Loss(nn.Linear(3, 1) if model is None else model, criterion, batches)


def gradient(loss: ml.Loss) -> Tensor:
    return loss.gradient(loss.theta)


def linear(weight: Tensor) -> nn.Module:
    model = nn.Linear(3, 1)
    model.weight = nn.Parameter(weight)
    return model


def frozen() -> nn.Module:
    return nn.Linear(3, 1).requires_grad_(False)


def text(value: Any) -> Any:
    """What no type checker would let through."""
    return value


def correct(method: ml.Method | None = None, **options: Any) -> Correction:
    return ml.correction(method or ml.Adam(), reference_loss(), **options)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.long()).sum(-1)


class Sizes(torch.optim.Optimizer):
    """Without an lr, as transformers' Adafactor."""

    def __init__(self, params: Any, lr: float | None = None):
        super().__init__(params, {"lr": lr})


FORGETS_NOTHING = ml.Method(0.1, (ml.Momentum(1.0),), lambda f, m, theta: m[0])

METHOD = {
    "lr_zero": (lambda: ml.Adam(lr=0), BadInput, "adam: lr must be positive and finite, got 0"),
    "lr_negative": (lambda: ml.HeavyBall(-1), BadInput, "heavy_ball: lr must be positive and finite, got -1"),
    "lr_nan": (lambda: ml.Lion(float("nan")), BadInput, "lion: lr must be positive and finite, got nan"),
    "beta_one": (lambda: ml.Adam(betas=(0.9, 1.0)), BadInput, r"adam: every beta must lie in \[0, 1\), got 1.0"),
    "beta_negative": (lambda: ml.NAdam(betas=(-0.1, 0.9)), BadInput, r"nadam: every beta .* got -0.1"),
    "momentum": (lambda: ml.Nesterov(momentum=1.5), BadInput, r"nesterov: every beta .* got 1.5"),
    "alpha": (lambda: ml.RMSprop(alpha=2), BadInput, r"rmsprop: every beta .* got 2"),
    "dampening": (lambda: ml.HeavyBall(dampening=2), BadInput, r"heavy_ball: dampening must lie in \[0, 1\], got 2"),
    "dampening_one": (lambda: ml.HeavyBall(dampening=1), BadInput, "dampening 1 keeps .* expected below 1"),
    "betas_number": (lambda: ml.AdamW(betas=0.9), BadInput, "adamw: betas must be a pair .* got 0.9"),  # pyright: ignore[reportArgumentType]
    "betas_triple": (lambda: ml.Lion(betas=(0.9, 0.9, 0.9)), BadInput, "lion: betas must be a pair"),
    "eps": (lambda: ml.RMSprop(eps=-1e-8), BadInput, "rmsprop: eps must be >= 0, got -1e-08"),
    "weight_decay": (
        lambda: ml.LionK(weight_decay=-1, K=norm),
        BadInput,
        "lion_k: weight_decay must be >= 0, got -1",
    ),
    "smoothing": (lambda: ml.Signum(smoothing=-1), BadInput, "signum: smoothing must be >= 0, got -1"),
    "momentum_decay": (lambda: ml.NAdam(momentum_decay=-1), BadInput, "nadam: momentum_decay must be >= 0, got -1"),
    "variable_beta": (lambda: ml.Momentum(1.5), BadInput, r"beta in \[0, 1\], got 1.5"),
    "variable_lag": (lambda: ml.Momentum(0.5, lag=2), BadInput, "lag must be 0 or 1, got 2"),
    "with_hyper": (lambda: ml.Adam().with_hyper(beta=0.9), BadInput, "adam has no beta; it has lr, betas, eps"),
    "with_hyper_custom": (lambda: FORGETS_NOTHING.with_hyper(lr=1), BadInput, "custom is not a catalogue method"),
}
LOSS = {
    "no_batches": (lambda: loss_of(batches=[]), BadInput, "batches is empty"),
    "one_shot": (
        lambda: loss_of(batches=iter(DATA)),
        BadType,
        "re-iterable, got a one-shot list_iterator; pass a list",
    ),
    "generator": (lambda: loss_of(batches=(x for x in DATA)), BadType, "re-iterable, got a one-shot generator"),
    "batches_tensor": (lambda: loss_of(batches=DATA[0]), BadType, "re-iterable, got Tensor"),
    "batches_number": (lambda: loss_of(batches=3), BadType, "re-iterable, got int"),
    "no_parameters": (lambda: loss_of(nn.Tanh()), BadInput, "no trainable parameters"),
    "all_frozen": (lambda: loss_of(frozen()), BadInput, "no trainable parameters"),
    "complex": (
        lambda: loss_of(linear(COMPLEX)),
        BadType,
        "parameter 'weight' is torch.complex64; expected a real",
    ),
    "integer": (
        lambda: ml.Loss.of(BATCHES, torch.arange(6)),
        BadType,
        "parameter 'theta' is torch.int64; expected a real",
    ),
    "mixed_dtypes": (
        lambda: loss_of(linear(WEIGHT.float())),
        BadType,
        "share one dtype and device, got torch.float32 on cpu, torch.float64 on cpu",
    ),
    "theta_nan": (
        lambda: loss_of(linear(WEIGHT / tensor([1, 0, 1]) * 0)),
        NotFinite,
        "parameter 'weight' is nan first at flat index 1",
    ),
    "theta_matrix": (
        lambda: ml.Loss.of(BATCHES, torch.ones(2, 3)),
        BadType,
        r"shape \(d,\), got shape \(2, 3\); flatten",
    ),
    "theta_list": (lambda: ml.Loss.of(BATCHES, [1.0, 2.0]), BadType, r"shape \(d,\), got list"),  # pyright: ignore[reportArgumentType]
    "curvature": (
        lambda: ml.Loss.of(BATCHES, THETA, curvature="fast"),  # pyright: ignore[reportArgumentType]
        BadInput,
        "'exact' or 'difference', got 'fast'",
    ),
    "vector_criterion": (
        lambda: gradient(loss_of(criterion=lambda model, batch: model(batch))),
        BadType,
        r"must return a scalar tensor, got shape \(2, 1\); take the mean",
    ),
    "float_criterion": (
        lambda: gradient(loss_of(criterion=lambda model, batch: model(batch).mean().item())),
        BadType,
        "must return a scalar tensor, got float",
    ),
    "detached_criterion": (
        lambda: gradient(loss_of(criterion=lambda model, batch: model(batch).mean().detach())),
        BadInput,
        "the loss does not depend on the parameters",
    ),
    "loss_inf": (
        lambda: gradient(loss_of(batches=[DATA[0], DATA[0] * torch.inf])),
        NotFinite,
        "the loss is (-?inf|nan) on batch 1",
    ),
    "gradient_nan": (
        # The slope of the root at 0 is infinite.
        lambda: gradient(ml.Loss.of([BATCHES[0], lambda t: (t * tensor([1, 1, 0, 1, 1, 1])).abs().sqrt().sum()], THETA)),
        NotFinite,
        "on batch 1 the gradient of 'theta' is (nan|-?inf) first at flat index 2",
    ),
    "call_nan": (
        lambda: reference_loss()(THETA * torch.nan),
        NotFinite,
        "parameter 'theta' is nan first at flat index 0",
    ),
    "theta_short": (lambda: reference_loss()(THETA[:2]), BadInput, r"theta must have shape \(6,\), got \(2,\)"),
    "v_short": (
        lambda: reference_loss().curvature(THETA, THETA[:2]),
        BadInput,
        r"must have shape \(6,\), got \(2,\)",
    ),
    "batch_index": (lambda: reference_loss()(THETA, batch=4), BadInput, r"batch must be in 0\.\.3, got 4"),
    "batch_negative": (
        lambda: reference_loss().gradient(THETA, batch=-1),
        BadInput,
        r"batch must be in 0\.\.3, got -1",
    ),
    "sparse": (lambda: gradient(loss_of(Sparse())), BadType, r"gradient of 'table.weight' is sparse.*sparse=False"),
}
CORRECTION = {
    "order": (lambda: correct(order="second"), BadInput, "order must be .*first.*resummed.*got 'second'"),
    "step_negative": (lambda: correct(step=-1), BadInput, "step must be None .* or an integer >= 0, got -1"),
    "step_float": (lambda: correct(step=1.5), BadInput, "step must be None .* or an integer >= 0, got 1.5"),
    "step_bool": (lambda: correct(step=True), BadInput, "step must be None .* or an integer >= 0, got True"),
    "theta": (lambda: correct(theta=THETA[:2]), BadInput, r"theta must have shape \(6,\), got \(2,\)"),
    "batches_count": (
        lambda: correct(step=2, batches=[0, 1]),
        BadInput,
        r"3 batch indices, one for each step 0\.\.2, got 2",
    ),
    "batches_empty": (lambda: correct(batches=[]), BadInput, "at least one batch index, got 0"),
    "batches_index": (lambda: correct(batches=[0, 4]), BadInput, r"indices in 0\.\.3, got 4"),
    "never_forgets": (lambda: correct(FORGETS_NOTHING), NeverForgets, r"never fades \(beta = 1\).*give step=n"),
}


def flat_slope() -> ml.Loss:
    return ml.Loss.of(lambda theta: theta.sum(), THETA)


def own(phi: Any) -> ml.Method:
    return ml.Method(0.1, (ml.Momentum(0.9),), phi)


SWAPPED: Any = reference_loss()
LIVE: Any = torch.optim.Adam([THETA.clone().requires_grad_()])
ARGUMENTS: dict[str, Any] = {
    "lr_text": (lambda: ml.Adam(lr=text("0.1")), BadType, "adam: lr must be a number, got '0.1'"),
    "lr_none": (lambda: ml.Lion(lr=text(None)), BadType, "lion: lr must be a number, got None"),
    "beta_none": (lambda: ml.Adam(betas=text((0.9, None))), BadType, "adam: every beta must be a number, got None"),
    "eps_text": (lambda: ml.RMSprop(eps=text("small")), BadType, "rmsprop: eps must be a number, got 'small'"),
    "momentum_text": (lambda: ml.Momentum(text("0.9")), BadType, "must be a number, got '0.9'"),
    "variables": (lambda: ml.Method(0.1, text(ml.Momentum(0.9)), lambda f, m, t: m[0]), BadType, "must be a tuple of"),
    "phi_number": (lambda: ml.Method(0.1, (ml.Momentum(0.9),), text(3)), BadType, "phi must be a function .* got 3"),
    "phi_scalar": (lambda: correct(own(lambda f, m, t: m[0].sum())), BadType, r"theta's shape \(6,\), got shape \(\)"),
    "phi_short": (lambda: correct(own(lambda f, m, t: m[0][:1])), BadType, r"theta's shape \(6,\), got shape \(1,\)"),
    "phi_none": (lambda: correct(own(lambda f, m, t: None)), BadType, "got NoneType"),
    "swapped_audit": (
        lambda: ml.audit(SWAPPED, text(ml.Adam())),
        BadType,
        "got Loss; the optimizer comes first, then the loss",
    ),
    "swapped_correction": (lambda: ml.correction(SWAPPED, text(ml.Adam())), BadType, "the optimizer comes first"),
    "swapped_trajectory": (lambda: ml.trajectory(SWAPPED, text(ml.Adam()), 3), BadType, "the optimizer comes first"),
    "swapped_loss": (lambda: ml.Loss(text(mean), text(nn.Linear(3, 1)), DATA), BadType, "in this order, got function, Linear"),
    "loss_none": (lambda: ml.audit(ml.Adam(), text(None)), BadType, "audit: loss must be a memoryless.Loss, got None"),
    "optimizer_text": (lambda: ml.audit(text("adam"), reference_loss()), BadType, "got 'adam'; make one, such as"),
    "optimizer_class": (lambda: ml.audit(text(torch.optim.Adam), reference_loss()), BadType, "got the class Adam"),
    "measures_none": (lambda: ml.audit(ml.Adam(), reference_loss(), measures=text(None)), BadType, "sequence such as"),
    "theta_float32": (lambda: correct(theta=THETA.float()), BadType, "theta is torch.float32, the loss torch.float64"),
    "theta_text": (lambda: correct(theta=text("theta")), BadType, "floating-point tensor of shape .* got 'theta'"),
    "batches_text": (lambda: correct(step=1, batches="ab"), BadType, "must be batch indices, got 'ab'"),
    "batches_float": (lambda: correct(step=1, batches=[0.5, 1.5]), BadInput, r"whole numbers, got \[0.5, 1.5\]"),
    "lrs_none": (lambda: ml.order_of_accuracy(ml.Adam(), reference_loss(), 1.0, text(None)), BadType, "a list of numbers"),
    "grid_text": (lambda: ml.beta_map(ml.Adam(), reference_loss(), text(["a"]), [0.9]), BadType, "a number, got 'a'"),
    "live_correction": (lambda: ml.correction(LIVE, SWAPPED), BadType, r"got a live Adam; give ml.method_of\(optimizer, loss"),
    "live_trajectory": (lambda: ml.trajectory(LIVE, SWAPPED, 3), BadType, "got a live Adam"),
    "live_map": (lambda: ml.beta_map(LIVE, SWAPPED), BadInput, "holds none of the loss's parameters"),
    "live_expected": (lambda: ml.expected_correction(LIVE, SWAPPED), BadType, "got a live Adam"),
    "live_accuracy": (lambda: ml.order_of_accuracy(LIVE, SWAPPED, 1.0, [0.1, 0.05]), BadType, "got a live Adam"),
    "live_modified_loss": (lambda: ml.modified_loss(LIVE, SWAPPED), BadType, "got a live Adam"),
    "live_flow": (lambda: ml.modified_flow(LIVE, SWAPPED), BadType, "got a live Adam"),
    "live_compare": (lambda: ml.compare([LIVE], SWAPPED), BadType, "got a live Adam"),
    "method_run": (lambda: ml.audit_run(text(ml.Adam()), SWAPPED), BadType, r"a live torch optimizer, got the method adam\("),
    "method_sizes": (lambda: ml.audit_batch_sizes(text(ml.Adam()), SWAPPED), BadType, "a live torch optimizer, got the method"),
    "steps_text": (lambda: ml.audit_run(LIVE, SWAPPED, text("10")), BadInput, "steps must be an integer >= 1, got '10'"),
    "steps_none": (lambda: ml.audit_run(LIVE, SWAPPED, text(None)), BadInput, "steps must be an integer >= 1, got None"),
    "steps_float": (lambda: ml.audit_run(LIVE, SWAPPED, text(2.5)), BadInput, "steps must be an integer >= 1, got 2.5"),
    "steps_true": (lambda: ml.audit_run(LIVE, SWAPPED, True), BadInput, "steps must be an integer >= 1, got True"),
    "steps_floats": (lambda: ml.audit_run(LIVE, SWAPPED, text(tensor([0.5]))), BadInput, "batch indices, whole numbers"),
    "steps_texts": (lambda: ml.audit_run(LIVE, SWAPPED, text([0, "a"])), BadInput, r"whole numbers, got \[0, 'a'\]"),
    "stops_number": (lambda: ml.audit_run(LIVE, SWAPPED, 5, stops=text(3)), BadType, "a list of whole numbers of steps, got 3"),
    "stops_float": (lambda: ml.audit_run(LIVE, SWAPPED, 5, stops=text([1.5])), BadType, r"of steps, got \[1.5\]"),
    "compare_text": (lambda: ml.audit_run(LIVE, SWAPPED, 5, compare=text(["lion"])), BadType, "got 'lion'; make one"),
    "compare_live": (lambda: ml.audit_run(LIVE, SWAPPED, 5, compare=[LIVE]), BadType, "got a live Adam"),
    "axes_number": (lambda: ml.audit_run(LIVE, SWAPPED, 5, betas=text(3)), BadType, "two lists of betas .* got 3"),
    "lags_text": (lambda: ml.audit_run(LIVE, SWAPPED, [0], lags=text("a")), BadInput, "lags must be an integer >= 1, got 'a'"),
    "gradient_number": (lambda: ml.audit(LIVE, SWAPPED, gradient=text(3)), BadType, "a function of the gradient, .* got 3"),
    "noise_optimizer": (lambda: ml.gradient_noise(LIVE), BadType, "loss must be a memoryless.Loss, got Adam"),
    "derive_loss": (lambda: ml.derive(SWAPPED), BadType, "a method alone, without a loss, got Loss"),
    "derive_nan": (lambda: ml.derive("adam", eps=float("nan")), BadInput, "adam: eps must be"),
    "lr_none_of_torch": (lambda: ml.TorchMethod(Sizes, [(2,)]), BadInput, "lr=None and sizes its steps itself; .* give it one"),
    "meta": (lambda: loss_of(nn.Linear(3, 1, device="meta")), BadInput, "meta device, which holds no numbers"),
    "float16": (lambda: loss_of(nn.Linear(3, 1, dtype=torch.float16)), BadType, "float16; expected a real one"),
    "zero_hessian": (
        lambda: ml.audit(ml.Adam(), flat_slope(), measures=["sharpness"]),
        BadInput,
        "the Hessian is zero here, so sharpness has no direction",
    ),
}
TABLE = METHOD | LOSS | CORRECTION | ARGUMENTS


@pytest.mark.parametrize(("call", "exception", "message"), TABLE.values(), ids=TABLE)
def test_bad_input(call, exception, message):
    with pytest.raises(exception, match=message) as raised:
        call()
    assert raised.type is exception
    assert "\n" not in str(raised.value)
