"""The derivative guard: is the Hessian-vector product of a loss the derivative of its gradient?

Second derivatives through fused or hand-written backward passes have been silently wrong in PyTorch (issues 175754, 186256,
196700) or are missing (116350). Once per Loss, three facts about H are tested on its first batch, at random u and v. A part
of the batch serves, by the same operations at a share of the cost; what fails there is tested on all of it, where kinks
average out.

    the gradient is a function of theta alone             else no derivative means anything: raise
    <u, H v> = <v, H u>
    H v = (g(theta + e v) - g(theta - e v)) / 2e          at two steps e, which must agree with each other to count

If H fails, differences of gradients are right where H is wrong: the caller is told to use them, and the innermost module whose
own second derivative fails is named.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memoryless.errors import BadInput, BadType
from memoryless.flat import dot, norm
from memoryless.isolation import isolated

SEEDS = 32
"""At which a loss that draws random numbers is evaluated, to see whether it uses them."""

Gradient = Callable[[Tensor], Tensor]
Linearized = Callable[[Tensor], Gradient]


def fault(
    gradient: Gradient,
    linearized: Linearized,
    theta: Tensor,
    slices: Mapping[str, slice],
    model: nn.Module | None,
    evaluate: Callable[[], Tensor],
    draws: bool,
) -> str | None:
    """Check the curvature at theta; why differences of gradients have to take its place, None if it can be trusted.

    Args:
        gradient: theta -> g, (d,) -> (d,).
        linearized: theta -> (v -> H v), the products from one graph.
        theta: shape (d,).
        slices: where each named parameter lies in theta; the comparison is made tensor by tensor.
        model: searched for the module at fault, if given.
        evaluate: runs the model once on the batch: the loss.
        draws: whether that draws random numbers.

    Returns:
        Why: the product is wrong or has no derivative formula.

    Raises:
        BadInput: the gradient changes from call to call (dropout, noise).
    """

    def seeded(f: Callable[[], Any], seed: int) -> Any:
        with isolated(theta.device, seed):
            return f()

    first, second = (seeded(lambda: gradient(theta), seed) for seed in (1, 2))
    same = _close(first, second, 1e4 * torch.finfo(theta.dtype).eps)
    if same and draws:  # a layer that is dropped now and then may have been kept both times
        same = len({seeded(evaluate, seed).item() for seed in range(SEEDS)}) == 1
    if not same:
        raise BadInput(
            f"the loss is not a function of theta alone: two gradients at one point differ ({_random_modules(model)}); give "
            "ml.Loss(..., noise='fixed') for one seed a batch or noise=8 for a mean over eight, use model.eval(), or remove "
            "the randomness; what draws from a generator of its own cannot be seeded"
        )
    try:
        tensor, error = _worst_tensor(gradient, linearized, theta, slices)
    except RuntimeError as missing:
        culprit = model and _culprit(model, evaluate)
        return f"{culprit or 'the exact one'} has no formula ({str(missing).splitlines()[0]})"
    if not tensor:
        return None
    culprit = model and _culprit(model, evaluate)
    where = culprit or f"parameter '{tensor}'"
    reason = f"the exact one is wrong at {where}, off by {error:.1g} relative to a central difference"
    if theta.dtype != torch.float64:
        reason += "; a network that fits its data leaves float32 few digits: model.double() tells rounding from an error"
    return reason


def _worst_tensor(
    gradient: Gradient, linearized: Linearized, theta: Tensor, slices: Mapping[str, slice]
) -> tuple[str | None, float]:
    """The tensor on which H v is most wrong and its relative error; (None, 0) if none is."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(theta.shape, generator=generator, dtype=theta.dtype).to(theta) for _ in range(2))
    v *= (1 + norm(theta)) / norm(v)
    double = theta.dtype == torch.float64
    curvature = linearized(theta)
    exact = curvature(v)
    # Halving the step leaves rounding and kinks (ReLU) where they are: what they do shows as disagreement of the two.
    steps = (4e-5, 1e-5) if double else (2e-2, 5e-3)
    coarse, fine = ((gradient(theta + e * v) - gradient(theta - e * v)) / (2 * e) for e in steps)
    worst, largest = None, 0.0
    for name, part in slices.items():
        scale = norm(fine[part]) + 1e-2 * norm(fine)
        if scale == 0:
            scale = norm(exact)
        error = float(norm(exact[part] - fine[part]) / scale) if scale > 0 else 0.0
        doubt = float(norm(coarse[part] - fine[part]) / scale) if scale > 0 else 0.0
        if error > max(1e-3 if double else 5e-2, 10 * doubt) and error > largest:
            worst, largest = name, error
    if worst is None:
        mixed = curvature(u)
        asymmetry = abs(dot(u, exact) - dot(v, mixed))
        typical = (norm(u) * norm(exact) + norm(v) * norm(mixed)) / theta.numel() ** 0.5
        if asymmetry > (1e-6 if double else 1e-1) * typical:
            return next(iter(slices)), float(asymmetry / typical)
    return worst, largest


def _culprit(model: nn.Module, evaluate: Callable[[], Any]) -> str | None:
    """The innermost module whose own second derivative is wrong, by testing each on the inputs it really gets."""
    calls: dict[nn.Module, tuple[Any, ...]] = {}
    handles = [
        m.register_forward_pre_hook(lambda module, args: calls.setdefault(module, args) and None) for m in model.modules()
    ]
    try:
        evaluate()
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in model.named_modules()}
    # Children come after their parents in named_modules(): reversed, the innermost is tested first.
    for module in reversed(list(names)):
        if module in calls and _module_fails(module, calls[module]):
            return f"module '{names[module]}' ({type(module).__name__})"
    return None


def _module_fails(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Is the second derivative of <module(x), r> in (x, parameters) missing or unlike differences, for a fixed random r?"""
    floats = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
    parameters = dict(module.named_parameters())
    tensors = [args[i].detach() for i in floats] + [p.detach() for p in parameters.values()]
    if not tensors:
        return False
    sizes = [t.numel() for t in tensors]

    def gradient_of(z: Tensor, create_graph: bool) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        leaves = [part.view(t.shape).requires_grad_() for part, t in zip(z.detach().split(sizes), tensors, strict=True)]
        inputs = list(args)
        for i, leaf in zip(floats, leaves[: len(floats)], strict=True):
            inputs[i] = leaf
        # Buffers go in as copies: a BatchNorm in training mode updates them in place.
        state = dict(zip(parameters, leaves[len(floats) :], strict=True))
        state |= {name: buffer.clone() for name, buffer in module.named_buffers()}
        output = torch.func.functional_call(module, state, tuple(inputs))
        if not isinstance(output, Tensor):
            raise BadType("only modules with one output tensor are tested")
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        grads = torch.autograd.grad((output * direction).sum(), leaves, create_graph=create_graph, materialize_grads=True)
        return leaves, grads

    def gradient(z: Tensor) -> Tensor:
        return torch.cat([g.reshape(-1) for g in gradient_of(z, False)[1]])

    def linearized(z: Tensor) -> Gradient:
        leaves, grads = gradient_of(z, True)

        def product(v: Tensor) -> Tensor:
            inner = torch.stack([(g * s.view(g.shape)).sum() for g, s in zip(grads, v.split(sizes), strict=True)]).sum()
            if not inner.requires_grad:
                return torch.zeros_like(z)
            products = torch.autograd.grad(inner, leaves, retain_graph=True, materialize_grads=True)
            return torch.cat([p.reshape(-1) for p in products])

        return product

    flat = torch.cat([t.reshape(-1) for t in tensors])
    with isolated(flat.device, 1):
        try:
            gradient(flat)
        except (RuntimeError, TypeError):
            return False
        try:
            return _worst_tensor(gradient, linearized, flat, {"all": slice(0, flat.numel())})[0] is not None
        except RuntimeError:
            return True


def _random_modules(model: nn.Module | None) -> str:
    def rate(m: nn.Module) -> Any:
        return getattr(m, "p" if "Dropout" in type(m).__name__ else "dropout", 0)

    active = [
        f"'{name}' ({type(m).__name__}({rate(m)}))"
        for name, m in (model.named_modules() if model else ())
        if m.training and isinstance(rate(m), float) and rate(m) > 0
    ]
    return f"active: {', '.join(active)}" if active else "no active dropout found; look for random calls"


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(norm(a - b) <= tolerance * (norm(a) + norm(b)))
