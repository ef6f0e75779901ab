"""Every recognised torch optimizer is its catalogue method: same trajectory, same next update, and left untouched."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.testing import assert_close

import memoryless as ml
from memoryless.errors import NotRecognised
from memoryless.methods.buffers import states_of
from memoryless.methods.live_optimizer import next_update, recognised, step_of
from memoryless.methods.method_optimizer import MethodOptimizer

BRANCHES = {
    "sgd": (SGD, {}),
    "sgd_decay": (SGD, {"weight_decay": 0.1}),
    "sgd_dampening_without_momentum": (SGD, {"dampening": 0.5}),
    "momentum": (SGD, {"momentum": 0.9}),
    "momentum_dampening": (SGD, {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "nesterov_decay": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, {"betas": (0.8, 0.95)}),
    "adam_decay": (Adam, {"weight_decay": 0.1}),
    "adam_decoupled": (Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamw": (AdamW, {"weight_decay": 0.1, "eps": 1e-3}),
    "nadam": (NAdam, {}),
    "nadam_decay": (NAdam, {"weight_decay": 0.1, "momentum_decay": 0.1}),
    "nadam_decoupled": (NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "rmsprop": (RMSprop, {"alpha": 0.9, "eps": 1e-2}),
    "rmsprop_decay": (RMSprop, {"weight_decay": 0.1}),
    "rmsprop_centered": (RMSprop, {"centered": True, "eps": 1e-3}),
}


class Tied(nn.Module):
    """An embedding that is also the head, and a parameter that the output does not depend on."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.hidden = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(tokens)).tanh())


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


BATCH = torch.linspace(-1, 2, 24, dtype=torch.float64).view(8, 3).sin(), torch.arange(8) % 2
TOKENS = torch.arange(5), torch.arange(5).roll(1)


def network() -> tuple[nn.Sequential, ml.Loss]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, ml.Loss(model, cross_entropy, [BATCH])


def tied() -> tuple[nn.Module, ml.Loss]:
    model = Tied()
    return model, ml.Loss(model, cross_entropy, [TOKENS])


def live_step(optimizer: Optimizer, loss: ml.Loss) -> None:
    """Train as everyone does, with the model's own backward pass."""
    assert loss.model is not None
    optimizer.zero_grad()
    cross_entropy(loss.model, TOKENS if isinstance(loss.model, Tied) else BATCH).backward()
    optimizer.step()


def assert_same_trajectory(optimizer: Optimizer, loss: ml.Loss, steps: int = 50) -> None:
    method, theta = ml.method_of(optimizer, loss.layout), loss.theta
    state: Any = method.init(theta)
    for n in range(steps):
        gradient = loss.gradient(theta)
        if n % 24 < 2:
            predicted = next_update(optimizer, loss.layout, gradient)
            # An update is read off as (theta - theta_next) / lr: it carries the rounding of theta over lr.
            assert_close(predicted, method.update(state, gradient, theta)[1], rtol=1e-9, atol=1e-11)
        state, F = method.update(state, gradient, theta)
        theta = theta - method.lr * F
        live_step(optimizer, loss)
        assert_close(loss.theta, theta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("branch", BRANCHES)
def test_same_trajectory(branch, maximize, foreach):
    make, options = BRANCHES[branch]
    model, loss = network()
    optimizer = make(model.parameters(), **{"lr": 0.01, "maximize": maximize, "foreach": foreach} | options)
    assert isinstance(ml.method_of(optimizer), ml.Method)
    assert_same_trajectory(optimizer, loss)


def test_tensor_learning_rate():
    model, loss = network()
    assert_same_trajectory(AdamW(model.parameters(), lr=torch.tensor(0.01)), loss)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, NAdam, RMSprop])
def test_param_groups(make):
    model, loss = network()
    first, _, third, fourth = model.parameters()
    extra = {SGD: {"momentum": 0.9}, RMSprop: {"alpha": 0.8}}.get(make, {"betas": (0.7, 0.9)})
    # Out of order, and one parameter stays out.
    groups = [{"params": [fourth, first]}, {"params": [third], "lr": 0.002, "weight_decay": 0.1} | extra]
    assert_same_trajectory(make(groups, lr=0.01), loss)


def test_groups_that_differ_in_nothing_are_one_method():
    model, loss = network()
    optimizer = AdamW([{"params": [p]} for p in model.parameters()], lr=0.01)
    method = ml.method_of(optimizer, loss.layout)
    assert isinstance(method, ml.Method)
    assert method.hyper == ml.AdamW(lr=0.01).hyper


@pytest.mark.parametrize("make", [SGD, Adam, NAdam, RMSprop])
def test_tied_and_unused_parameters(make):
    model, loss = tied()
    assert "head.weight" not in loss.names
    assert_same_trajectory(make(model.parameters(), lr=0.01), loss)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("branch", BRANCHES)
def test_next_update_leaves_no_trace(branch, foreach):
    make, options = BRANCHES[branch]
    model, loss = network()
    optimizer = make(model.parameters(), **{"lr": 0.01, "foreach": foreach} | options)
    live_step(optimizer, loss)
    before = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in model.parameters()]))
    grads = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    rng, gradient = torch.get_rng_state(), loss.gradient(loss.theta)
    given = gradient.clone()
    next_update(optimizer, loss.layout, given)
    assert torch.equal(given, gradient)
    after = (optimizer.state_dict(), [p.detach() for p in model.parameters()])
    assert_close(after, before, rtol=0, atol=0)
    assert all(p.grad is grad for p, (grad, _) in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(grad, copied) for grad, copied in grads)
    assert torch.equal(rng, torch.get_rng_state())


def test_next_update_of_a_float32_model_is_float64():
    model, _ = network()
    loss = ml.Loss(model.float(), cross_entropy, [(BATCH[0].float(), BATCH[1])])
    optimizer = Adam(model.parameters(), lr=0.01)
    gradient = loss.gradient(loss.theta)
    update = next_update(optimizer, loss.layout, gradient)
    g = gradient.double()
    assert update.dtype == torch.float64
    # Adam's first step is g / (|g| + eps), whatever the betas.
    assert_close(update, g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-9)


def test_the_step_of_a_float32_model_counts_where_a_copy_differs():
    class Rounding(SGD):
        """Coarse on purpose: a copy in float64 does something else."""

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad = p.grad if p.dtype == torch.float64 else 2 * p.grad
            super().step()

    model, _ = network()
    loss = ml.Loss(model.float(), cross_entropy, [(BATCH[0].float(), BATCH[1])])
    gradient = loss.gradient(loss.theta)
    update = next_update(Rounding(model.parameters(), lr=0.1), loss.layout, gradient)
    assert update.dtype == torch.float32
    assert_close(update, 2 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [{"lr": 0.0}, {"lr": 1e-9, "outside": True}])
def test_a_first_group_that_moves_nothing_does_not_decide(first):
    model, loss = network()
    a, *others = model.parameters()
    frozen = nn.Parameter(torch.ones(2)) if first.pop("outside", False) else a
    optimizer = Adam([{"params": [frozen]} | first, {"params": others}], lr=0.01)
    method, gradient, theta = ml.method_of(optimizer, loss.layout), loss.gradient(loss.theta), loss.theta
    assert method.lr == 0.01
    expected = method.update(method.init(theta), gradient, theta)[1]
    assert_close(next_update(optimizer, loss.layout, gradient), expected, rtol=1e-9, atol=1e-11)
    live_step(optimizer, loss)
    assert_close(loss.theta, theta - 0.01 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [Adam, Adagrad])
def test_lr_0_for_all_is_refused(make):
    model, loss = network()
    optimizer = make(model.parameters(), lr=0.0)
    for ask in (lambda: ml.method_of(optimizer, loss.layout), lambda: next_update(optimizer, loss.layout, loss.theta)):
        with pytest.raises(ml.errors.BadInput, match="got 0 for all parameters of the loss: nothing moves"):
            ask()


@pytest.mark.parametrize("make", [SGD, Adam, NAdam, Adagrad])
def test_decay_does_not_move_unused_parameters(make):
    model, loss = tied()
    optimizer = make(model.parameters(), lr=0.01, weight_decay=0.1)
    assert loss.layout.unused == {"unused"}
    assert_same_trajectory(optimizer, loss)
    method, part = ml.method_of(optimizer, loss.layout), loss.slices["unused"]
    gradient, theta = loss.gradient(loss.theta), loss.theta
    assert not method.update(method.init(theta), gradient, theta)[1][part].any()
    assert not next_update(optimizer, loss.layout, gradient)[part].any()
    loss.layout.set_gradients(gradient)
    assert model.unused.grad is None


def test_what_a_next_step_cannot_be_asked():
    class Elsewhere(SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad.mul_(next(draws))
            super().step()

    draws = iter(range(1, 100))
    model, loss = network()
    gradient, theta = loss.gradient(loss.theta), loss.theta
    for optimizer, message in [
        (LBFGS(model.parameters(), lr=0.1), "evaluates the loss again at other parameters"),
        (Elsewhere(model.parameters(), lr=0.1), "two looks at its next step differ"),
    ]:
        with pytest.raises(ml.errors.BadInput, match=message):
            next_update(optimizer, loss.layout, gradient)
        assert torch.equal(loss.theta, theta)
        assert not optimizer.state


def test_step_of():
    model, loss = network()
    for optimizer, expected in [(Adam(model.parameters()), 3), (SGD(model.parameters(), lr=0.1, momentum=0.9), None)]:
        assert step_of(optimizer) == 0
        for _ in range(3):
            live_step(optimizer, loss)
        assert step_of(optimizer) == expected


def test_step_of_parameters_out_of_step():
    model, loss = network()
    optimizer = Adam([*model.parameters()][:2])
    live_step(optimizer, loss)
    optimizer.add_param_group({"params": [*model.parameters()][2:]})
    live_step(optimizer, loss)
    with pytest.raises(ValueError, match=r"different numbers of steps: \[1, 2\]"):
        step_of(optimizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda params: Adam(params, amsgrad=True), "amsgrad"),
        (lambda params: AdamW(params, amsgrad=True), "amsgrad"),
        (lambda params: RMSprop(params, momentum=0.9), "RMSprop with momentum"),
        (lambda params: LBFGS(params), "LBFGS is not recognised"),
        (lambda params: type("Mine", (Adam,), {})(params), "Mine is not recognised"),
    ],
    ids=["adam_amsgrad", "adamw_amsgrad", "rmsprop_momentum", "lbfgs", "subclass"],
)
def test_refused(make, message):
    with pytest.raises(ml.errors.NotRecognised, match=message):
        recognised(make(network()[0].parameters()))


def test_optimizer_of_another_model():
    with pytest.raises(ValueError, match="none of the loss's parameters"):
        ml.method_of(Adam(network()[0].parameters()), network()[1].layout)


def by_its_buffers(optimizer: Optimizer, loss: ml.Loss) -> torch.Tensor:
    method, states = states_of(optimizer, loss.layout)
    gradient, theta, F = loss.gradient(loss.theta), loss.theta, torch.zeros_like(loss.theta)
    for part, state in zip(method.parts, states, strict=True):
        _, own = part.method.update(state, gradient[part.index], theta[part.index])
        F[part.index] = part.scale * own
    return F


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_its_buffers_are_the_methods_state(branch, steps):
    model, loss = network()
    make, options = BRANCHES[branch]
    optimizer = make(model.parameters(), **{"lr": 0.01} | options)
    for _ in range(steps):
        live_step(optimizer, loss)
    expected = next_update(optimizer, loss.layout, loss.gradient(loss.theta))
    assert_close(by_its_buffers(optimizer, loss), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", [ml.Lion(0.01), ml.Signum(0.01), ml.LionK(0.01, K=None), ml.Adam(0.01)])
def test_buffers_of_methods_without_a_torch_optimizer(method):
    model, loss = network()
    optimizer = MethodOptimizer(model.parameters(), method)
    for _ in range(5):
        live_step(optimizer, loss)
    expected = next_update(optimizer, loss.layout, loss.gradient(loss.theta))
    assert_close(by_its_buffers(optimizer, loss), expected, rtol=1e-9, atol=1e-11)


def test_buffers_of_groups_out_of_order():
    model, loss = network()
    first, last = model[0], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    groups = [{"params": [last.weight], "lr": 0.02, "betas": (0.5, 0.8)}, {"params": [first.bias, first.weight]}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(6):
        live_step(optimizer, loss)
    expected = next_update(optimizer, loss.layout, loss.gradient(loss.theta))
    assert_close(by_its_buffers(optimizer, loss), expected, rtol=1e-9, atol=1e-11)


def test_other_buffers_are_refused():
    model, loss = network()
    optimizer = torch.optim.Adagrad(model.parameters())
    with pytest.raises(NotRecognised, match="buffers of Adagrad cannot be read as averages"):
        states_of(optimizer, loss.layout)
