"""`Loss`: derivatives against torch's, no trace left behind, and wrong second derivatives caught."""

import copy
import random
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import memoryless as ml
from memoryless.experiments.problems import digits_mlp, text_gpt
from tests.problems import BATCHES, FULL_BATCH, THETA, reference_loss, relative_error

Batch = tuple[Tensor, Tensor]


def mse(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def data(count: int = 3, size: int = 4) -> list[Batch]:
    return [(torch.randn(size, 3), torch.randn(size, 2)) for _ in range(count)]


def network(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), *between, nn.Tanh(), nn.Linear(4, 2))


def value(model: nn.Module, batches: Sequence[Batch]):
    """L as a plain function of theta, for torch.func."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def function(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in parameters.values()])
        state = {name: part.view(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        losses = [mse(lambda x: torch.func.functional_call(model, state, (x,)), batch) for batch in batches]  # pyright: ignore[reportArgumentType]
        return torch.stack(losses).mean()

    return function


def hessian(function, theta: Tensor) -> Tensor:
    # torch.func.hessian is 5 % off through a BatchNorm in training mode (torch 2.13); this one agrees with differences.
    found = torch.autograd.functional.hessian(function, theta)
    assert isinstance(found, Tensor)
    return found


def check(loss: ml.Loss, function, batch: int | None = None, tolerance: float = 1e-12) -> None:
    """Value, gradient and curvature, also by `linearize`, against torch's at a point that is not the model's."""
    theta = loss.theta + 0.1 * torch.randn_like(loss.theta)
    v = torch.randn_like(theta)
    gradient, Hv = torch.func.grad(function)(theta), hessian(function, theta) @ v
    assert relative_error(loss(theta, batch), function(theta)) < 1e-14
    assert relative_error(loss.gradient(theta, batch), gradient) < 1e-13
    assert relative_error(loss.curvature(theta, v, batch), Hv) < tolerance
    linear, curvature = loss.linearize(theta, batch)
    assert relative_error(linear, gradient) < 1e-13
    for _ in range(2):
        assert relative_error(curvature(v), Hv) < tolerance


@pytest.mark.parametrize("count", [1, 3])
def test_derivatives_of_a_network(count):
    model, batches = network(), data(count)
    check(ml.Loss(model, mse, batches), value(model, batches))


def test_one_batch_by_its_index():
    model, batches = network(), data()
    loss = ml.Loss(model, mse, batches)
    assert len(loss) == 3
    for i, batch in enumerate(batches):
        check(loss, value(model, [batch]), batch=i)


def test_plain_functions():
    loss = reference_loss()
    check(loss, FULL_BATCH)
    check(loss, BATCHES[2], batch=2)
    check(ml.Loss.of(FULL_BATCH, THETA), FULL_BATCH)


def test_value_is_differentiable():
    theta = THETA.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reference_loss()(theta), theta)
    assert relative_error(gradient, FULL_BATCH.gradient(THETA)) < 1e-14


@pytest.mark.parametrize("count", [1, 3])
def test_curvature_by_differences(count):
    model, batches = network(), data(count)
    check(ml.Loss(model, mse, batches, curvature="difference"), value(model, batches), tolerance=1e-6)


def test_curvature_by_differences_in_float32():
    model, batches = network(), data()
    double = value(copy.deepcopy(model), batches)
    loss = ml.Loss(model.float(), mse, [(x.float(), y.float()) for x, y in batches], curvature="difference")
    v = torch.randn_like(loss.theta)
    Hv = hessian(double, loss.theta.double()) @ v.double()
    # One-sided differences have error sqrt(eps), 3e-4, times a constant.
    assert relative_error(loss.curvature(loss.theta, v).double(), Hv) < 1e-2


def test_no_curvature_of_zero():
    loss = ml.Loss.of(FULL_BATCH, THETA, curvature="difference")
    assert not loss.curvature(THETA, torch.zeros(6)).any()


def test_a_linear_loss_has_no_curvature():
    loss = ml.Loss.of(lambda theta: theta.sum(), THETA)
    assert not loss.curvature(THETA, torch.ones(6)).any()


def test_data_loader():
    (x, y), *_ = data(1, 12)
    model, dataset = network(), TensorDataset(x, y)
    loss = ml.Loss(model, mse, DataLoader(dataset, batch_size=4, shuffle=True))
    assert len(loss) == 3
    check(loss, value(model, [(x, y)]))
    # The same index is the same batch as long as the generator stands still.
    assert_close(loss(loss.theta), torch.stack([loss(loss.theta, i) for i in range(3)]).mean())


def test_a_shuffling_loader_with_its_own_generator_stands_still():
    (x, y), *_ = data(1, 10)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    loss = ml.Loss(network(), mse, DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=generator))
    # The last batch is smaller: another order would be another mean.
    assert torch.equal(loss.gradient(loss.theta), loss.gradient(loss.theta))
    assert torch.equal(loss.gradient(loss.theta, 0), loss.gradient(loss.theta, 0))
    assert torch.equal(generator.get_state(), before)


class Checkpointed(nn.Module):
    """Runs its forward pass a second time during the backward pass."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # pyright: ignore[reportReturnType]


def test_checkpointing_sees_theta_and_not_the_models_own_parameters():
    model, batches = network(), data(2)
    plain, checkpointed = ml.Loss(model, mse, batches), ml.Loss(Checkpointed(model), mse, batches)
    theta, v = plain.theta + 0.3, torch.randn(len(plain.theta))
    assert_close(checkpointed.gradient(theta), plain.gradient(theta))
    assert_close(checkpointed.curvature(theta, v), plain.curvature(theta, v))
    gradient, product = checkpointed.linearize(theta, 0)
    assert_close(gradient, plain.gradient(theta, 0))
    assert_close(product(v), plain.curvature(theta, v, 0))


def test_tied_parameters_count_once():
    embedding = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    tokens = torch.tensor([0, 3, 1])

    def criterion(model: nn.Module, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch), batch.roll(1))

    def function(theta: Tensor) -> Tensor:
        table = theta.view(5, 3)
        return nn.functional.cross_entropy(table[tokens] @ table.T, tokens.roll(1))

    loss = ml.Loss(nn.Sequential(embedding, head), criterion, [tokens])
    assert loss.names == ["0.weight"]
    check(loss, function)


def test_frozen_parameters_are_left_out():
    model, batches = network(), data()
    model[0].weight.requires_grad_(False)
    loss = ml.Loss(model, mse, batches)
    assert loss.frozen == ["0.weight"]
    assert loss.names == ["0.bias", "2.weight", "2.bias"]
    assert loss.slices == {"0.bias": slice(0, 4), "2.weight": slice(4, 12), "2.bias": slice(12, 14)}
    check(loss, value(model, batches))


def test_unused_parameters_have_no_effect():
    model, batches = network(), data()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    check(ml.Loss(model, mse, batches), value(model, batches))


def test_attention_has_a_curvature():
    def function(t: Tensor) -> Tensor:
        q, k, v = (t.view(1, 1, 4, 6) * c for c in (1.0, 0.5, 2.0))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()

    def by_hand(t: Tensor) -> Tensor:
        x = t.view(4, 6)
        scores = 0.5 * x @ x.T / 6**0.5
        return (2 * scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1) @ x).square().sum()

    check(ml.Loss.of(function, torch.randn(24)), by_hand)


class Noisy(nn.Module):
    """Draws from every generator without using what it draws."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        np.random.rand(3)
        random.random()
        return x


def test_no_trace_is_left():
    model = network(nn.BatchNorm1d(4), Noisy())
    batches = data()
    mse(model, batches[0]).backward()
    loss = ml.Loss(model, mse, DataLoader(TensorDataset(*batches[0]), batch_size=2, shuffle=True))
    before = copy.deepcopy((model.state_dict(), [p.grad for p in model.parameters()]))
    generators = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    loss(loss.theta)
    gradient, curvature = loss.linearize(loss.theta)
    curvature(gradient)
    loss.curvature(loss.theta, gradient, batch=0)
    assert_close((model.state_dict(), [p.grad for p in model.parameters()]), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (str(np.random.get_state()), random.getstate()) == generators[1:]


def test_batch_norm_in_training_mode():
    model, batches = network(nn.BatchNorm1d(4)), data()
    stateless = copy.deepcopy(model)
    for m in stateless.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    check(ml.Loss(model, mse, batches), value(stateless, batches), tolerance=1e-12)


class Lazy(Sequence):
    """Batches made on demand, counting how many are alive."""

    def __init__(self, length: int):
        self.length, self.alive, self.most = length, 0, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if i >= self.length:
            raise IndexError(i)
        batch = torch.full((3,), float(i))
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(batch, self.forget)
        return batch

    def forget(self) -> None:
        self.alive -= 1


def test_memory_does_not_grow_with_the_number_of_batches():
    batches = Lazy(20)
    loss = ml.Loss(nn.Linear(3, 1), lambda model, batch: model(batch).square().mean(), batches)
    gradient, curvature = loss.linearize(loss.theta)
    curvature(gradient)
    loss.curvature(loss.theta, gradient)
    with torch.no_grad():
        loss(loss.theta)
    assert batches.most <= 2
    assert batches.alive == 0


# ---- the derivative guard


class WrongTwice(torch.autograd.Function):
    """x^3 whose backward pass hides its dependence on x: right gradient, wrong Hessian, no error."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx, *outputs):
        return 3 * ctx.x**2 * outputs[0]


class OnceDifferentiable(torch.autograd.Function):
    """Asks torch to raise, which `torch.autograd.grad` does not do: the error lies off the path to the parameters."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, *outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        return 3 * ctx.x**2 * outputs[0]


class MissingTwice(torch.autograd.Function):
    """x^3 with a backward pass that has none itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *outputs):
        (x,) = ctx.saved_tensors
        return Slope.apply(x, outputs[0])


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, output):
        return 3 * x**2 * output


class Cube(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class TrueCube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


@pytest.mark.parametrize("function", [WrongTwice, OnceDifferentiable, MissingTwice])
def test_a_second_derivative_wrong_or_missing_is_caught_named_and_replaced(function):
    model, batches = network(nn.BatchNorm1d(4), Cube(function), nn.BatchNorm1d(4)).eval(), data()
    loss = ml.Loss(model, mse, batches)
    with pytest.warns(ml.errors.CurvatureWarning, match=r"module '2' \(Cube\)") as caught:
        loss.curvature(loss.theta, loss.theta)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    model[2] = TrueCube()
    check(loss, value(model, batches), tolerance=1e-5)


def test_the_search_for_the_module_leaves_no_trace():
    model = network(Cube(WrongTwice), nn.BatchNorm1d(4))
    before = copy.deepcopy(model.state_dict())
    loss = ml.Loss(model, mse, data())
    with pytest.warns(ml.errors.CurvatureWarning):
        loss.curvature(loss.theta, loss.theta)
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


class Rotated(torch.autograd.Function):
    """A surrogate gradient, like a straight-through estimator's, that is not the gradient of anything."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum() / 2

    @staticmethod
    def backward(ctx, *outputs):
        (x,) = ctx.saved_tensors
        return outputs[0] * (x + x.roll(1))


def test_an_asymmetric_hessian_is_caught():
    loss = ml.Loss.of(lambda theta: Rotated.apply(theta), THETA)  # pyright: ignore[reportArgumentType]
    v = torch.arange(6.0)
    with pytest.warns(ml.errors.CurvatureWarning, match="wrong at parameter 'theta'"):
        Hv = loss.curvature(THETA, v)
    # What enters Eq. 9 is the derivative of the gradient that the optimizer sees, not its transpose.
    assert relative_error(Hv, v + v.roll(1)) < 1e-6


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.Dropout(0.5), r"'1' \(Dropout\(0.5\)\)"), (nn.AlphaDropout(0.1), r"'1' \(AlphaDropout\(0.1\)\)")],
)
def test_active_dropout_is_refused_by_name(module, name):
    loss = ml.Loss(network(module), mse, data())
    with pytest.raises(ValueError, match=f"not a function of theta alone.*{name}"):
        loss.curvature(loss.theta, loss.theta)


def test_dropout_in_eval_mode_is_fine():
    model, batches = network(nn.Dropout(0.5)).eval(), data()
    check(ml.Loss(model, mse, batches), value(model, batches))


def relu_network(seed: int, dtype: torch.dtype) -> ml.Loss:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).to(dtype)
    return ml.Loss(model, mse, [(x.to(dtype), y.to(dtype)) for x, y in data(1, 16)])


# Warnings are errors: a CurvatureWarning fails the test.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(10))
def test_kinks_are_not_mistaken_for_errors(seed, dtype):
    loss = relu_network(seed, dtype)
    loss.curvature(loss.theta, loss.theta)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("problem", [digits_mlp, text_gpt])
def test_rounding_is_not_mistaken_for_an_error(problem, seed):
    loss = problem(seed, dtype=torch.float32).loss
    loss.curvature(loss.theta, loss.theta)


@pytest.mark.parametrize(("samples", "whole"), [(64, False), (6, True)])
def test_derivatives_are_tested_on_a_part_of_a_batch(samples: int, whole: bool):
    seen = []

    class Counted(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append(len(input))
            return super().forward(input).tanh()

    model = Counted(3, 1, dtype=torch.float64)
    data = torch.randn(samples, 3, dtype=torch.float64), torch.randn(samples, 1, dtype=torch.float64)
    loss = ml.Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), [data])
    loss._products.guard(loss.theta)
    assert set(seen) == ({samples} if whole else {16})


def test_a_model_that_takes_no_smaller_batch_is_tested_on_all_of_it():
    class Fixed(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.view(32, 3)).tanh()

    model = Fixed(3, 1, dtype=torch.float64)
    data = torch.randn(32, 3, dtype=torch.float64), torch.randn(32, 1, dtype=torch.float64)
    loss = ml.Loss(model, lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), [data])
    v = torch.randn_like(loss.theta)
    twin = torch.autograd.functional.hvp(
        lambda t: nn.functional.mse_loss((data[0] @ t[:3, None] + t[3]).tanh(), data[1]), loss.theta, v
    )[1]
    torch.testing.assert_close(loss.curvature(loss.theta, v), twin)
