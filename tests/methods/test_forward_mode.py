"""Forward mode: arithmetic with numbers has the digits that torch's own has."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

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
