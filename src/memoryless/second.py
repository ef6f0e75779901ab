"""Second derivatives from optimized kernels, substituted for torch's own inside `Loss.linearize` and nowhere else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within, in this thread, convolutions have a fast second derivative and attention has one."""
    with sdpa_kernel(SDPBackend.MATH), _Substitution():
        yield


class _Substitution(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        substitute = _SUBSTITUTES.get(func)
        result = substitute(*args, **(kwargs or {})) if substitute and not types else NotImplemented
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def _plain(*tensors: Tensor | None) -> bool:
    """Ordinary real tensors of one dtype, no autocast, no torch.func transform and no forward mode around them."""
    present = [t for t in tensors if t is not None]
    return (
        len({t.dtype for t in present}) == 1
        and present[0].is_floating_point()
        and all(t.layout == torch.strided for t in present)
        and not torch.is_autocast_enabled(present[0].device.type)
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


class Convolution(torch.autograd.Function):
    """aten.convolution(x, W, b, *how), how = (stride, padding, dilation, transposed, output_padding, groups)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, how: tuple[Any, ...]) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, W)
        ctx.how, ctx.sizes = how, None if b is None else list(b.shape)
        return aten.convolution(x, W, b, *how)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x, W = ctx.saved_tensors
        return *ConvolutionBackward.apply(dy, x, W, ctx.sizes, ctx.how, ctx.needs_input_grad[:3]), None  # pyright: ignore


class ConvolutionBackward(torch.autograd.Function):
    """(dx, dW, db) of a convolution, those that `mask` asks for."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, W: Tensor, sizes: Any, how: tuple[Any, ...], mask: Any) -> Any:  # pyright: ignore
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, W)
        ctx.how = how
        return aten.convolution_backward(dy, x, W, sizes, *how, mask)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None, w: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore
        dy, x, W = ctx.saved_tensors
        need_dy, need_x, need_W, *_ = ctx.needs_input_grad
        ddy = None
        if need_dy and u is not None:
            ddy = aten.convolution(u, W, w, *ctx.how)
        if need_dy and v is not None:
            other = aten.convolution(x, v, w if ddy is None else None, *ctx.how)
            ddy = other if ddy is None else ddy + other
        if need_dy and ddy is None and w is not None:
            ddy = w.view(-1, *[1] * (dy.dim() - 2)).expand_as(dy)
        mask = [need_x and v is not None, need_W and u is not None, False]
        dx, dW = None, None
        if any(mask):
            # An operand that is None is only asked for its shape.
            dx, dW, _ = aten.convolution_backward(dy, x if u is None else u, W if v is None else v, None, *ctx.how, mask)
        return ddy, dx, dW, None, None, None


def _convolve(dimensions: int, transposed: bool) -> Callable[..., Any]:
    def each(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * dimensions if len(values) == 1 else values

    def run(x: Tensor, W: Tensor, b: Any, stride: Any, padding: Any, dilation: Any, groups: int, output_padding: Any) -> Any:
        if not _plain(x, W, b):
            return NotImplemented
        stride, dilation = each(stride), each(dilation)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, W.shape[2:], strict=True)]
            if any(t % 2 for t in total) or any(s != 1 for s in stride):
                return NotImplemented
            padding = [t // 2 for t in total]
        batch = x if x.dim() == W.dim() else x.unsqueeze(0)
        how = stride, each(padding), dilation, transposed, each(output_padding), groups
        y = Convolution.apply(batch, W, b, how)
        assert isinstance(y, Tensor)
        return y if x.dim() == W.dim() else y.squeeze(0)

    def convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # noqa: ANN
        return run(input, weight, bias, stride, padding, dilation, groups, 0)

    def transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):  # noqa: ANN
        return run(input, weight, bias, stride, padding, dilation, groups, output_padding)

    return transpose if transposed else convolution


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    torch.conv1d: _convolve(1, False),
    torch.conv2d: _convolve(2, False),
    torch.conv3d: _convolve(3, False),
    torch.conv_transpose1d: _convolve(1, True),
    torch.conv_transpose2d: _convolve(2, True),
    torch.conv_transpose3d: _convolve(3, True),
}
