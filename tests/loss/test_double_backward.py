"""The substituted second derivatives against differences, against torch's own, and where they must decline."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import memoryless as ml
from memoryless.experiments.problems import cross_entropy, digits_cnn, text_gpt
from memoryless.loss.double_backward import twice_differentiable
from tests.problems import relative_error


def substituted(y: Tensor) -> bool:
    node: Any = y.grad_fn
    while node is not None and "View" in type(node).__name__ + "View" * (type(node).__name__ == "SqueezeBackward1"):
        node = node.next_functions[0][0]
    return type(node).__name__ in ("_ConvolutionBackward", "_AttentionBackward", "_GELUBackward")


def leaf(*shape: int, needed: bool = True) -> Tensor:
    return torch.randn(shape, requires_grad=needed)


def check(function: Callable[..., Tensor], *inputs: Any) -> None:
    """Value, first and second derivative of the substitute, which must be in use."""

    def inside(*args: Any) -> Tensor:
        with twice_differentiable():
            return function(*args)

    y = inside(*inputs)
    assert substituted(y)
    with sdpa_kernel(SDPBackend.MATH):
        expected = function(*inputs)
    assert not substituted(expected)
    assert_close(y, expected)
    assert gradcheck(inside, inputs)
    assert gradgradcheck(inside, inputs)


# Shapes of x and W, and the options.
CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": (functional.conv1d, (2, 2, 6), (3, 2, 3), {}),
    "1d same, dilated": (functional.conv1d, (2, 2, 6), (3, 2, 3), {"padding": "same", "dilation": 2}),
    "2d": (functional.conv2d, (2, 2, 4, 5), (3, 2, 3, 2), {}),
    "2d strided and padded": (functional.conv2d, (2, 2, 5, 5), (2, 2, 3, 3), {"stride": 2, "padding": 1}),
    "2d stride leaves a remainder": (functional.conv2d, (1, 2, 6, 5), (2, 2, 3, 3), {"stride": (2, 3), "padding": (1, 0)}),
    "2d dilated": (functional.conv2d, (1, 2, 5, 6), (2, 2, 2, 3), {"dilation": (2, 1)}),
    "2d groups": (functional.conv2d, (2, 4, 3, 3), (6, 2, 2, 2), {"groups": 2}),
    "2d depthwise": (functional.conv2d, (2, 3, 4, 4), (3, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    "2d same": (functional.conv2d, (1, 2, 4, 4), (2, 2, 3, 3), {"padding": "same"}),
    "2d valid": (functional.conv2d, (1, 2, 4, 4), (2, 2, 3, 3), {"padding": "valid", "stride": 2}),
    "2d without a batch": (functional.conv2d, (2, 4, 4), (2, 2, 3, 3), {"padding": (1,)}),
    "2d one by one": (functional.conv2d, (2, 3, 3, 3), (2, 3, 1, 1), {}),
    "3d": (functional.conv3d, (1, 2, 3, 4, 3), (2, 2, 2, 2, 2), {"stride": (1, 2, 1), "padding": 1}),
    "transposed 1d": (functional.conv_transpose1d, (2, 2, 4), (2, 3, 3), {"stride": 2, "output_padding": 1, "padding": 1}),
    "transposed 2d": (functional.conv_transpose2d, (1, 4, 3, 3), (4, 1, 2, 3), {"groups": 2, "dilation": 2}),
    "transposed 3d": (functional.conv_transpose3d, (1, 2, 2, 2, 2), (2, 2, 2, 2, 2), {"stride": 2}),
}


@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 1, None), (0, 1, 1), (0, 1, None), (1, 0, 0), (0, 0, 1), (1, 0, 1)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, needed):
    function, x, W, options = CONVOLUTIONS[name]
    channels = W[1] * options.get("groups", 1) if "transposed" in name else W[0]
    tensors = leaf(*x, needed=bool(needed[0])), leaf(*W, needed=bool(needed[1]))
    bias = None if needed[2] is None else leaf(channels, needed=bool(needed[2]))
    check(lambda x, W, b: function(x, W, b, **options), *tensors, bias)


ATTENTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4), {}),
    "no batch": ((3, 4), (3, 4), (3, 4), {}),
    "causal": ((2, 3, 4), (2, 3, 4), (2, 3, 4), {"is_causal": True}),
    "causal, more keys": ((2, 3, 4), (2, 5, 4), (2, 5, 2), {"is_causal": True}),
    "causal, more queries": ((2, 5, 4), (2, 3, 4), (2, 3, 2), {"is_causal": True, "scale": 0.3}),
    "additive mask": ((2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4), {"attn_mask": torch.linspace(-2, 1, 9).view(3, 3).double()}),
    "boolean mask": (
        (2, 2, 2, 3),
        (2, 2, 3, 3),
        (2, 2, 3, 3),
        {"attn_mask": torch.tensor([True, False, True]).view(1, 1, 1, 3)},
    ),
    "row without keys": ((1, 2, 3), (1, 2, 3), (1, 2, 3), {"attn_mask": torch.tensor([[False, False], [True, True]])}),
    "grouped queries": ((2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2), {"enable_gqa": True, "is_causal": True}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name):
    *shapes, options = ATTENTIONS[name]
    check(lambda Q, K, V: functional.scaled_dot_product_attention(Q, K, V, **options), *(leaf(*shape) for shape in shapes))


def test_gelu():
    check(functional.gelu, 3 * leaf(20))


def hvp(loss: ml.Loss, v: Tensor) -> Tensor:
    """Torch's own."""
    with sdpa_kernel(SDPBackend.MATH):
        Hv = torch.autograd.functional.hvp(lambda theta: loss(theta), loss.theta, v)[1]
    assert isinstance(Hv, Tensor)
    return Hv


def mean_square(model: Any, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def frozen(module: Any) -> Any:
    return module.requires_grad_(False)


def attention_layers() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(layer, nn.Linear(8, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.GELU(),
        frozen(nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False)),
        nn.Tanh(),
        nn.Conv2d(6, 6, 2, dilation=2, groups=6),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.ConvTranspose2d(6, 3, 3, bias=False),
    )


NETWORKS: dict[str, Callable[[], ml.Loss]] = {
    "digits": lambda: digits_cnn(count=10).loss,
    "prose": lambda: text_gpt(count=3).loss,
    "convolutions": lambda: ml.Loss(convolutions(), mean_square, [torch.randn(3, 2, 8, 8)]),
    "1d": lambda: ml.Loss(
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.GELU("tanh"), nn.Conv1d(3, 2, 3)), mean_square, [torch.randn(2, 2, 9)]
    ),
    "3d": lambda: ml.Loss(
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Conv3d(2, 1, 2)), mean_square, [torch.randn(1, 4, 4, 4)]
    ),
    "multi-head attention": lambda: ml.Loss(attention_layers(), mean_square, [torch.randn(2, 5, 8)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_against_torch(name):
    loss = NETWORKS[name]()
    theta, v = loss.theta, torch.randn_like(loss.theta)
    Hv = hvp(loss, v)
    before = torch.get_rng_state()
    gradient, curvature = loss.linearize(theta)
    assert torch.equal(torch.get_rng_state(), before)
    assert relative_error(gradient, loss.gradient(theta)) < 1e-12
    for _ in range(2):
        assert relative_error(curvature(v), Hv) < 1e-12
    assert relative_error(loss.curvature(theta, v), Hv) < 1e-12
    assert not loss.uses_differences


@pytest.mark.parametrize("make", [digits_cnn, text_gpt])
def test_float32(make):
    single, double = (make(count=10, dtype=dtype).loss for dtype in (torch.float32, torch.float64))
    theta, v = single.theta, torch.randn_like(single.theta)
    assert relative_error(single.curvature(theta, v).double(), double.curvature(theta.double(), v.double())) < 1e-5


def test_multi_head_attention_is_reached():
    seen: list[bool] = []

    class Spy(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            y, weights = super().forward(*args, **kwargs)
            nodes: list[Any] = [y.grad_fn] if y.grad_fn else []  # the first look asks whether the loss draws: no graph
            for node in nodes:
                nodes += [n for n, _ in node.next_functions if n is not None and n not in nodes]
            seen.append(any(type(n).__name__ == "_AttentionBackward" for n in nodes))
            return y, weights

    x = torch.randn(2, 3, 4)
    model = Spy(4, 2)
    loss = ml.Loss(model, lambda m, x: m(x, x, x, need_weights=False)[0].square().mean(), [x])
    loss.linearize(loss.theta)
    # torch before 2.13 offers no way into its functions written in Python: attention then is torch's own.
    assert seen[-1] == hasattr(torch.overrides, "redispatch_function")


class Inner(nn.Module):
    """A convolution in surroundings that the substitutes leave to torch."""

    def __init__(self, run: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]):
        super().__init__()
        self.run, self.convolution = run, nn.Conv1d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(lambda x: functional.gelu(self.convolution(x)), x)


def tangent(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        pair = forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x))))
        assert pair.tangent is not None
        return pair.primal + pair.tangent


class Tagged(torch.Tensor):
    """A subclass has its own idea of a convolution."""


SURROUNDINGS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "forward mode": tangent,
    "subclass": lambda f, x: f(x.as_subclass(Tagged)).as_subclass(torch.Tensor),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings(name):
    x = torch.randn(4, 2, 6)
    models = [Inner(SURROUNDINGS[name]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    loss = ml.Loss(models[0], mean_square, [x])
    v = torch.randn_like(loss.theta)
    Hv = hvp(loss, v)
    assert relative_error(loss.curvature(loss.theta, v), Hv) < 1e-12


def test_what_is_not_covered_is_left_to_torch():
    Q, bias = leaf(1, 1, 3, 2), leaf(3, 3)
    x = leaf(1, 1, 4, 4)
    with twice_differentiable():
        attend = functional.scaled_dot_product_attention
        assert not substituted(attend(Q, Q, Q, attn_mask=bias))
        assert not substituted(attend(Q, Q, Q, dropout_p=0.5))
        with pytest.warns(UserWarning, match="zero-padded copy"):
            assert not substituted(functional.conv2d(x, leaf(1, 1, 2, 2), padding="same"))
        assert not substituted(functional.conv2d(x.bfloat16(), leaf(1, 1, 2, 2).bfloat16()))
        assert not substituted(functional.conv2d(x.to(torch.complex64), leaf(1, 1, 2, 2).to(torch.complex64)))
        assert not substituted(functional.gelu(x, approximate="tanh"))
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.conv2d(x.float(), leaf(1, 1, 2, 2).float()).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            functional.conv2d(x, leaf(1, 3, 2, 2))


def test_only_this_thread_within_the_context():
    x, W = leaf(1, 1, 4), leaf(1, 1, 2)
    found: list[bool] = []

    def look() -> None:
        found.append(substituted(functional.conv1d(x, W)))

    with twice_differentiable():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
    look()
    with pytest.raises(ZeroDivisionError), twice_differentiable():
        raise ZeroDivisionError
    look()
    assert found == [False, True, False, False]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.conv1d(x, x[:, :, :2]),
        functional.gelu,
        lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    ],
)
def test_third_derivative(function):
    def second(x: Tensor) -> Tensor:
        with twice_differentiable():
            y = function(x)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, leaf(2, 2, 3))


class SelfAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        Q, K = x.unflatten(1, (3, 2)).unbind(2)
        return functional.scaled_dot_product_attention(Q, K, x[:, :3], scale=0.4)


def test_gradient_penalty():
    def criterion(model: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return g.square().mean()

    # Without LayerNorm, whose third derivative in torch is wrong (PyTorch issue 175754).
    model = nn.Sequential(nn.Conv1d(4, 6, 2, padding=1), nn.GELU(), SelfAttention(), nn.Conv1d(3, 2, 2))
    loss = ml.Loss(model, criterion, [torch.randn(2, 4, 8)])
    v = torch.randn_like(loss.theta)
    Hv = hvp(loss, v)
    assert relative_error(loss.linearize(loss.theta)[1](v), Hv) < 1e-12
    assert not loss.uses_differences


def test_cross_entropy_of_a_network_with_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    x, y = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last), torch.arange(6) % 5
    loss = ml.Loss(model, cross_entropy, [(x, y)])
    v = torch.randn_like(loss.theta)
    Hv = hvp(loss, v)
    assert relative_error(loss.curvature(loss.theta, v), Hv) < 1e-12
