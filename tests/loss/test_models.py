"""Models as people wrap them: each has the derivatives of the plain network inside, or one line that says why not."""

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import memoryless as ml
from tests.problems import relative_error

# Said by the compiler itself, of the user's own call.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


BATCH = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Inside(nn.Module):
    """Runs a network in some way."""

    def __init__(self, net: nn.Sequential, way: Callable[[nn.Sequential, Tensor], Tensor]):
        super().__init__()
        self.net, self.way = net, way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.net, x)


def in_part(net: nn.Sequential, reentrant: bool) -> nn.Module:
    def way(net: nn.Sequential, x: Tensor) -> Tensor:
        inner = checkpoint(net[1:4], net[0](x), use_reentrant=reentrant)
        assert isinstance(inner, Tensor)
        return net[4](inner)

    return Inside(net, way)


def by_segments(net: nn.Sequential) -> nn.Module:
    return Inside(net, lambda net, x: checkpoint_sequential(net, 2, x.requires_grad_(), use_reentrant=True))


def part_compiled(net: nn.Sequential) -> nn.Module:
    net[2] = torch.compile(net[2], backend="aot_eager")  # pyright: ignore[reportArgumentType]
    return net


def in_place(net: nn.Sequential) -> nn.Module:
    net.compile(backend="aot_eager")
    return net


WRAPPED: dict[str, Callable[[nn.Sequential], Any]] = {
    "compiled, eager": lambda net: torch.compile(net, backend="eager"),
    "compiled, aot_eager": lambda net: torch.compile(net, backend="aot_eager"),
    "a part compiled": part_compiled,
    "compiled in place": in_place,
    "checkpoint": lambda net: in_part(net, False),
    "reentrant checkpoint": lambda net: in_part(net, True),
    "checkpoint by segments": by_segments,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model_has_the_derivatives_of_what_is_inside(name):
    plain = ml.Loss(network(), cross_entropy, [BATCH])
    model = WRAPPED[name](network())
    own = tuple(x.clone() for x in BATCH)
    loss = ml.Loss(model, cross_entropy, [own])
    cross_entropy(model, own).backward()  # as in training, before anything is asked of the loss
    theta, v = plain.theta + 0.1, torch.randn(len(plain.theta))
    assert relative_error(loss.gradient(theta), plain.gradient(theta)) < 1e-14
    assert relative_error(loss.curvature(theta, v), plain.curvature(theta, v)) < 1e-13
    assert not loss.uses_differences
    assert relative_error(loss.backward(), plain.gradient(plain.theta)) < 1e-13


def test_what_a_reentrant_checkpoint_leaves_without_gradient_stays_so():
    """No input of it needs a gradient, so that training does not move what is inside."""

    def first(net: nn.Sequential, x: Tensor) -> Tensor:
        inner = checkpoint(net[0], x, use_reentrant=True)
        assert isinstance(inner, Tensor)
        return net[1:](inner)

    loss = ml.Loss(Inside(network(), first), cross_entropy, [BATCH])
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        own = loss.backward()
    assert torch.equal(loss.gradient(loss.theta), own)
    assert not own[: 3 * 4 + 4].any()


@pytest.mark.skipif(not hasattr(torch.overrides, "redispatch_function"), reason="torch before 2.13: by differences")
def test_a_checkpoint_finds_its_attention_again():
    """It runs its forward pass once more in each backward pass, where fast second derivatives must stand as in the first."""

    def attended(x: Tensor) -> Tensor:
        return functional.gelu(functional.scaled_dot_product_attention(x[None], x[None], x[None])[0])

    def again(net: nn.Sequential, x: Tensor) -> Tensor:
        inner = checkpoint(attended, net[0](x), use_reentrant=False)
        assert isinstance(inner, Tensor)
        return net[1:](inner)

    plain = ml.Loss(Inside(network(), lambda net, x: net[1:](attended(net[0](x)))), cross_entropy, [BATCH])
    loss = ml.Loss(Inside(network(), again), cross_entropy, [BATCH])
    vs = torch.randn(2, len(plain.theta))
    assert relative_error(loss.curvature(loss.theta, vs[0]), plain.curvature(plain.theta, vs[0])) < 1e-14
    assert relative_error(loss.curvatures(loss.theta, vs, 0), plain.curvatures(plain.theta, vs, 0)) < 1e-14
    assert not loss.uses_differences


class ModelOutput(OrderedDict[str, Any]):
    """Keys that are attributes too, as transformers return them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "ModelOutput": lambda loss, logits: ModelOutput(loss=loss, logits=logits),
    "an object": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
    "a dictionary": lambda loss, logits: {"loss": loss, "log": {"accuracy": 0.5}},
    "(loss, logits)": lambda loss, logits: (loss, logits),
    "(logits, loss)": lambda loss, logits: (logits, loss),
    "shape (1,)": lambda loss, logits: loss.reshape(1),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_loss_in_an_output(name):
    def criterion(model: nn.Module, batch: Any) -> Any:
        logits = model(batch[0])
        return OUTPUTS[name](nn.functional.cross_entropy(logits, batch[1]), logits)

    plain, loss = (ml.Loss(network(), c, [BATCH]) for c in (cross_entropy, criterion))
    assert torch.equal(loss.gradient(loss.theta), plain.gradient(plain.theta))
    assert torch.equal(loss.backward(), plain.backward())
    points = torch.stack([loss.theta, loss.theta + 1])
    torch.testing.assert_close(loss.gradients(points), plain.gradients(points))


@pytest.mark.parametrize(
    "output", [lambda x: (x.mean(), x.square().mean()), lambda x: ModelOutput(logits=x), lambda x: x, lambda x: {"l": x.mean()}]
)
def test_an_output_that_does_not_tell_its_loss_is_refused(output):
    loss = ml.Loss(network(), lambda model, batch: output(model(batch[0])), [BATCH])
    with pytest.raises(ml.errors.BadType, match="criterion must return a scalar tensor, got"):
        loss.gradient(loss.theta)


class Adapted(nn.Module):
    """A frozen layer and a trained product of small rank beside it: https://arxiv.org/abs/2106.09685."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(1, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ (self.up @ self.down).T


def test_many_frozen_names_are_summed_up():
    model = nn.Sequential(*[Adapted(nn.Linear(3, 3)) for _ in range(20)], nn.Linear(3, 2))
    loss = ml.Loss(model, cross_entropy, [BATCH])
    (note,) = loss.notes
    assert note == "frozen parameters left out: 0.base.weight and 39 others"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.bfloat16(), r"'0.weight' is torch.bfloat16; expected .* audit model.float\(\)"),
        (lambda m: m.half(), r"'0.weight' is torch.float16; expected .* audit model.float\(\)"),
        (lambda m: m.to(torch.complex64), "torch.complex64; expected a real one.* torch.view_as_real"),
        (lambda m: m[2].float(), "must share one dtype and device, got torch.float32 on cpu, torch.float64 on cpu"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_numbers_that_do_not_do_are_refused_in_one_line(change, message):
    model = network()
    change(model)
    with pytest.raises(ml.errors.BadType, match=message) as caught:
        ml.Loss(model, cross_entropy, [BATCH])
    assert "\n" not in str(caught.value)


def test_frozen_half_precision_is_nobodys_business():
    model = nn.Sequential(nn.Linear(3, 2), nn.Embedding(2, 2).bfloat16().requires_grad_(False))
    ml.Loss(model, lambda _, batch: cross_entropy(model[0], batch), [BATCH])


class Doubtful(torch.autograd.Function):
    """The cube with a wrong second derivative, as rounding makes one."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx, *outputs):
        return 3 * ctx.x**2 * outputs[0]


@pytest.mark.parametrize(("dtype", "advised"), [(torch.float32, True), (torch.float64, False)])
def test_where_two_ways_disagree_in_float32_float64_is_advised(dtype, advised):
    theta = torch.linspace(1, 2, 6, dtype=dtype)
    loss = ml.Loss.of(lambda theta: Doubtful.apply(theta).sum(), theta)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(ml.errors.CurvatureWarning) as caught:
        loss.curvature(theta, theta)
    assert ("model.double()" in str(caught[0].message)) == advised


NORMS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm, old": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, old": nn.utils.spectral_norm,
    "compiled": lambda linear: torch.compile(linear, backend="eager"),
    "dropout": lambda linear: nn.Sequential(linear, nn.Dropout(0.2)),
}


@pytest.mark.filterwarnings("ignore::memoryless.errors.CurvatureWarning", "ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NORMS)
def test_batch_sizes_of_a_model_in_the_middle_of_training(name):
    model = network()
    model[2] = NORMS[name](nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    cross_entropy(model, BATCH).backward()
    optimizer.step()
    cross_entropy(model, BATCH)  # leaves a weight that hangs on a graph
    before = {name: x.clone() for name, x in model.state_dict().items()}, torch.get_rng_state()
    loss = ml.Loss(model, cross_entropy, [BATCH], noise="fixed" if name == "dropout" else None)
    found = ml.audit_batch_sizes(optimizer, loss, [3], betas=((0.9,), (0.999,)), steps=8)
    assert bool(torch.isfinite(torch.as_tensor(found.sizes[0].change.values)).all())
    assert all(torch.equal(x, before[0][name]) for name, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
