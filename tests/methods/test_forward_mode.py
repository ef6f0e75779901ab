"""Forward mode: arithmetic with numbers has the digits that torch's own has."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from memoryless.methods.forward_mode import _BY_NUMBER, forward_mode

WAYS: list[Callable[[Any, Any], Any]] = [operator.add, operator.sub, operator.mul, operator.truediv]
ALL: list[Callable[[Tensor], Tensor]] = [
    *(lambda x, f=f: f(x, 0.3) for f in _BY_NUMBER),
    *(lambda x, f=f: f(x, 3) for f in WAYS),
    *(lambda x, f=f: f(0.3, x) for f in WAYS),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("of", range(len(ALL)))
def test_the_same_bits(of: int, dtype: torch.dtype):
    x, dx = torch.randn(2, 5, dtype=dtype)
    found = []
    for level in (forward_ad.dual_level, forward_mode):
        with level():
            found.append(forward_ad.unpack_dual(ALL[of](forward_ad.make_dual(x.clone(), dx.clone()))))
    for y, z in zip(*found, strict=True):
        assert y.dtype == z.dtype == dtype
        assert torch.equal(y, z)


class Seen(TorchDispatchMode):
    """What torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "by_number"), [(torch.float32, True), (torch.float16, False)])
def test_numbers_go_to_the_overload_for_numbers(dtype: torch.dtype, by_number: bool):
    """But in half precision, where the ordinary call rounds the number first."""
    with forward_mode(), Seen() as seen:
        _ = forward_ad.make_dual(torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype)) * 0.3
    assert ("aten.mul.Scalar" in seen.names) == by_number
