"""Second derivatives of convolution, attention and GELU from fast kernels, inside `Loss.linearize` and nowhere else.

Counted in matrix products, a gradient and a Hessian-vector product cost three gradients; torch takes up to four: it
differentiates convolution's backward pass by convolutions that oneDNN does not know, unfused attention term by term, and the
fused kernels of attention not at all (PyTorch issue 116350). Here each function f has its backward pass as a second function,
whose own backward pass is written out. With dy the cotangent of y = f(x), and u, v, w those of what the backward pass returns:

Convolution y = x * W + b is bilinear, and so are dx and dW: <u, dx> + <v, dW> + <w, db> = <dy, u * W + x * v + w>. So the
cotangent of dy is u * W + x * v + w, and those of x and W are the ordinary dx and dW with (x, W) replaced by (u, v).

Attention O = P V, P = softmax(Q K'), is given G, the cotangent of O (the scale is in Q; ' transposes; . is elementwise):
    R = G V' - rowsum(P . G V'),  Z = P . R,  dQ = Z K,  dK = Z' Q,  dV = P' G.
In J = <a, dQ> + <b, dK> + <c, dV>, with A = a K' + Q b', Z has the cotangent A and P itself has G c'. Then (rows of constants
drop out of what goes through a softmax)
    Y = dJ/d(G V') = P . (A - rowsum(P . A)),  X = dJ/d(Q K') = E - P . rowsum(E)  with  E = P . G c' + Y . R
    dJ/dG = P c + Y V,  dJ/dQ = Z b + X K,  dJ/dK = Z' a + X' Q,  dJ/dV = Y' G.

GELU y = x Phi(x) has y'' = phi(x) (2 - x^2).

Measured on one busy CPU core, networks of benchmarks/speed.py, gradient and product in plain gradients, torch's own -> this:
CNN 3.5 -> 3.1, GPT 3.8 -> 3.5, MLP 2.9 -> 2.75; peak memory of a correction: CNN 1.86 -> 1.86, GPT 3.3 -> 2.6, MLP 2.9 -> 2.3.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """A context in which what this thread computes has fast second derivatives, and attention has one at all."""
    with sdpa_kernel(SDPBackend.MATH), _Substitution():
        yield


class _Substitution(TorchFunctionMode):
    """Calls of torch's functions go to `_SUBSTITUTES`; those decline, by NotImplemented, what they do not cover."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKED_INTO and hasattr(torch.overrides, "redispatch_function"):
            with self:  # torch >= 2.13 can look into its functions that are written in Python
                return torch.overrides.redispatch_function(func, types, args, kwargs)
        substitute = None if types else _SUBSTITUTES.get(func)
        result = substitute(*args, **kwargs) if substitute else NotImplemented
        return func(*args, **kwargs) if result is NotImplemented else result


def _plain(*tensors: Tensor | None) -> bool:
    """Real tensors of one dtype, float32 or float64, outside autocast, torch.func transforms and forward mode."""
    present = [t for t in tensors if t is not None]
    return (
        len({t.dtype for t in present}) == 1
        and present[0].dtype in (torch.float32, torch.float64)
        and all(t.layout == torch.strided for t in present)
        and not torch.is_autocast_enabled(present[0].device.type)
        and _functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


class _Convolution(torch.autograd.Function):
    """x * W + b, with how = (stride, padding, dilation, transposed, output_padding, groups)."""

    @staticmethod
    def forward(ctx, x, W, b, how):
        ctx.save_for_backward(x, W)
        ctx.how, ctx.bias = how, None if b is None else list(b.shape)
        return aten.convolution(x, W, b, *how)

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_apply(_ConvolutionBackward, dy, *ctx.saved_tensors, ctx.bias, ctx.how, ctx.needs_input_grad[:3]), None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, W, bias, how, needed):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, W)
        ctx.how = how
        return aten.convolution_backward(dy, x, W, bias, *how, needed)

    @staticmethod
    def backward(ctx, u, v, w):  # pyright: ignore[reportIncompatibleMethodOverride]
        dy, x, W = ctx.saved_tensors
        need_dy, need_x, need_W = ctx.needs_input_grad[:3]
        ddy = dx = dW = None
        if need_dy and u is not None:
            ddy = aten.convolution(u, W, w, *ctx.how)
        if need_dy and v is not None:
            term = aten.convolution(x, v, w if u is None else None, *ctx.how)
            ddy = term if ddy is None else ddy.add_(term)
        if need_dy and u is None and v is None and w is not None:
            ddy = w.view(-1, *[1] * (dy.dim() - 2)).expand_as(dy)
        needed = [need_x and v is not None, need_W and u is not None, False]
        if any(needed):
            # Where u or v is None, x or W only lends its shape.
            operands = x if u is None else u, W if v is None else v
            dx, dW, _ = aten.convolution_backward(dy, *operands, None, *ctx.how, needed)
        return ddy, dx, dW, None, None, None


class _Attention(torch.autograd.Function):
    """softmax(Q K' + bias) V; `empty` if rows of the bias may be -inf throughout: their weights are 0."""

    @staticmethod
    def forward(ctx, Q, K, V, bias, empty):
        P = _weights(Q, K, bias, empty)
        ctx.save_for_backward(Q, K, V, P, bias)
        ctx.empty = empty
        return P @ V

    @staticmethod
    def backward(ctx, G):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_apply(_AttentionBackward, G, *ctx.saved_tensors, ctx.empty), None, None


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, G, Q, K, V, P, bias, empty):
        ctx.save_for_backward(G, Q, K, V, P, bias)
        ctx.empty = empty
        return _attention_backward(G, Q, K, V, P)

    @staticmethod
    def backward(ctx, a, b, c):  # pyright: ignore[reportIncompatibleMethodOverride]
        G, Q, K, V, P, bias = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(G: Tensor, Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, ...]:
                return _attention_backward(G, Q, K, V, _weights(Q, K, bias, ctx.empty))

            return *_by_torch(plain, (G, Q, K, V), (a, b, c)), None, None, None
        R = _centered(G @ V.mT, P)
        Y = _centered((a @ K.mT).add_(Q @ b.mT), P).mul_(P)
        E = (G @ c.mT).mul_(P).addcmul_(Y, R)
        X = E.addcmul_(P, E.sum(-1, keepdim=True), value=-1)
        Z = R.mul_(P)
        return P @ c + Y @ V, Z @ b + X @ K, Z.mT @ a + X.mT @ Q, Y.mT @ G, None, None, None


def _weights(Q: Tensor, K: Tensor, bias: Tensor | None, empty: bool) -> Tensor:
    S = Q @ K.mT if bias is None else (Q @ K.mT).add_(bias)
    return aten._safe_softmax(S, -1) if empty else S.softmax(-1)


def _attention_backward(G: Tensor, Q: Tensor, K: Tensor, V: Tensor, P: Tensor) -> tuple[Tensor, ...]:
    R = G @ V.mT
    Z = (R - (P * R).sum(-1, keepdim=True)) * P
    return Z @ K, Z.mT @ Q, P.mT @ G


def _centered(A: Tensor, P: Tensor) -> Tensor:
    return A.sub_((P * A).sum(-1, keepdim=True))


class _GELU(torch.autograd.Function):
    """x Phi(x)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return aten.gelu(x)

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _apply(_GELUBackward, dy, *ctx.saved_tensors)


class _GELUBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x):
        ctx.save_for_backward(dy, x)
        return aten.gelu_backward(dy, x)

    @staticmethod
    def backward(ctx, u):  # pyright: ignore[reportIncompatibleMethodOverride]
        dy, x = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _by_torch(aten.gelu_backward, (dy, x), (u,))
        square = x.square()
        density = (square * -0.5).exp_()
        second = square.sub_(2).mul_(density).mul_(-1 / math.sqrt(2 * math.pi))
        return aten.gelu_backward(u, x), second.mul_(dy) * u  # not in place: u may have rows that the others have not


def _by_torch(
    function: Callable[..., Any], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """What the cotangents of `function`'s results make of its inputs; slow, but differentiable further (gradient penalties)."""
    aliases = [x.view_as(x) for x in inputs]  # one tensor may be several inputs
    results = function(*aliases)
    results = results if isinstance(results, tuple) else (results,)
    pairs = [(y, c) for y, c in zip(results, cotangents, strict=True) if y.requires_grad]
    ys, cs = zip(*pairs, strict=True)
    wanted = [x for x in aliases if x.requires_grad]
    grads = iter(torch.autograd.grad(ys, wanted, cs, create_graph=True, allow_unused=True))
    return tuple(next(grads) if x.requires_grad else None for x in aliases)


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)


def _gelu(input, *, approximate="none"):
    return _apply(_GELU, input) if approximate == "none" and _plain(input) else NotImplemented


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    additive = attn_mask is not None and attn_mask.is_floating_point()
    if not _plain(query, key, value, attn_mask if additive else None) or getattr(attn_mask, "requires_grad", False):
        return NotImplemented
    if enable_gqa:
        key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), -3) for t in (key, value))
    if dropout_p or (is_causal and attn_mask is not None) or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return NotImplemented
    mask, bias = attn_mask, attn_mask
    if is_causal:
        mask = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril_()
    if mask is not None and not additive:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    query = query * (query.size(-1) ** -0.5 if scale is None else scale)
    return _apply(_Attention, query.contiguous(), key.contiguous(), value.contiguous(), bias, attn_mask is not None)


def _convolve(x: Tensor, W: Tensor, b: Tensor | None, how: tuple) -> Any:
    """x * W + b, how as in `_Convolution`, each length and padding as torch's functions take them."""
    stride, padding, dilation, transposed, output_padding, groups = how

    def each(value: int | Sequence[int]) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * (W.dim() - 2) if len(values) == 1 else values

    if not _plain(x, W, b) or x.dim() not in (W.dim() - 1, W.dim()):
        return NotImplemented
    stride, dilation = each(stride), each(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, W.shape[2:], strict=True)]
        if any(t % 2 for t in total) or any(s != 1 for s in stride):
            return NotImplemented
        padding = [t // 2 for t in total]
    padding = each(0 if padding == "valid" else padding)
    batched = x.dim() == W.dim()
    how = stride, padding, dilation, transposed, each(output_padding), groups
    y = _apply(_Convolution, x if batched else x.unsqueeze(0), W, b, how)
    return y if batched else y.squeeze(0)


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _convolve(input, weight, bias, (stride, padding, dilation, False, 0, groups))


def _transposed(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return _convolve(input, weight, bias, (stride, padding, dilation, True, output_padding, groups))


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed),
    functional.scaled_dot_product_attention: _attend,
    functional.gelu: _gelu,
}

# A checkpoint runs its forward pass again in the backward pass, and must find the same functions there.
_LOOKED_INTO = functional.multi_head_attention_forward, torch.autograd.grad
