"""`derive`: ways to name a method and its hyperparameters, and what it refuses."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false
# pyright: reportOperatorIssue=false

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch
from sympy import Rational

import memoryless as ml
from memoryless.errors import BadInput, NotDerivable
from memoryless.formulas.symbols import g, h, theta
from memoryless.methods.catalogue import CATALOGUE
from tests.formulas.cases import LR, close, derive, single, tensors
from tests.problems import METHODS, groups, reference_loss


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]


def two_groups() -> torch.optim.Optimizer:
    first, second = parameters()
    return torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.2}], lr=0.1, momentum=0.9)


NO_FORMULA = {
    "adagrad": (lambda: ml.derive(torch.optim.Adagrad(parameters())), "Adagrad is a black box.*not recognised"),
    "class": (lambda: ml.derive(torch.optim.Adagrad), "Adagrad is a black box.*not recognised"),
    "class_of_matrices": (lambda: ml.derive(torch.optim.Muon), "Muon is a black box.*its defaults alone"),
    "groups": (lambda: ml.derive(groups(LR)), r"param groups have a formula each: derive\(groups.parts\[0\].method\)"),
    "torch_groups": (lambda: ml.derive(two_groups()), "param groups have a formula each"),
    "none": (lambda: ml.derive(None), "NoneType is a black box.*expected a name"),
    "number": (lambda: ml.derive(3), "int is a black box"),
    "not_a_method": (lambda: ml.derive("tests.problems:THETA"), "Tensor is a black box"),
    "returns_nothing": (lambda: ml.derive(lambda lr: None), "returned NoneType, expected a memoryless.Method"),
    "phi_returns_nothing": (lambda: ml.derive(single(lambda f, m, theta: None)), "phi of custom .* returns NoneType"),
    "centered": (lambda: ml.derive("rmsprop", centered=True, eps=0).M, "division by zero.*positive eps"),
    "own_drifts": (lambda: ml.derive("lion", step=3).net_age, "the updates of the past are no multiples of the present one"),
}
BAD_VALUE = {
    "name": (lambda: ml.derive("adamax"), "unknown optimizer 'adamax'; expected one of heavy_ball, .*signum, .*module:NAME"),
    "module": (lambda: ml.derive("nowhere:adam"), "nowhere:adam not found: No module named 'nowhere'"),
    "attribute": (lambda: ml.derive("tests.problems:adam"), "tests.problems:adam not found: tests.problems has no 'adam'"),
    "hyperparameter": (
        lambda: ml.derive("adam", gamma=1),
        "no hyperparameter 'gamma'; expected one of lr, betas, .*beta1",
    ),
    "other_methods": (lambda: ml.derive("heavy_ball", beta2=0.5), "no hyperparameter 'beta2'; expected one of lr, momentum"),
    "symbol": (lambda: ml.derive("adam", eps="1 + x"), "expected a number or a symbol's name, got '1 \\+ x'"),
    "beta": (lambda: ml.derive("adam", beta1=1.5), r"adam: every beta must lie in \[0, 1\), got 3/2"),
    "beta_one": (lambda: ml.derive("signum", momentum=1), r"signum: every beta must lie in \[0, 1\), got 1"),
    "betas_number": (lambda: ml.derive("adam", betas=0.9), "adam: betas must be a pair"),
    "betas_triple": (lambda: ml.derive("lion", betas=(0.9, 0.9, 0.9)), "lion: betas must be a pair"),
    "eps": (lambda: ml.derive("rmsprop", eps=-1), "rmsprop: eps must be >= 0, got -1"),
    "eps_nan": (lambda: ml.derive("rmsprop", eps=math.nan), "rmsprop: eps must be .*nan"),
    "lr": (lambda: ml.derive("adam", h=0), "adam: lr must be positive and finite, got 0"),
    "lr_infinite": (lambda: ml.derive("adam", lr=math.inf), "adam: lr must be positive and finite"),
    "dampening": (lambda: ml.derive("heavy_ball", dampening=1), "dampening 1 keeps"),
    "step_negative": (lambda: ml.derive("adam", step=-1), 'None \\(steady state\\), an integer >= 0 or "n", got -1'),
    "step_name": (lambda: ml.derive("adam", step="m"), "got 'm'"),
    "step_bool": (lambda: ml.derive("adam", step=True), "got True"),
    "step_float": (lambda: ml.derive("adam", step=1.0), "got 1.0"),
}


@pytest.mark.parametrize("name", NO_FORMULA)
def test_not_derivable(name):
    call, message = NO_FORMULA[name]
    with pytest.raises(NotDerivable, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", BAD_VALUE)
def test_bad_values(name):
    call, message = BAD_VALUE[name]
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert raised.type is BadInput
    assert "\n" not in str(raised.value)


def test_not_derivable_is_a_value_error():
    assert issubclass(NotDerivable, ValueError)


def test_a_torch_optimizer_has_the_formulas_of_its_method():
    d = ml.derive(torch.optim.AdamW(parameters(), lr=0.01, betas=(0.8, 0.9), eps=0.1, weight_decay=0.2))
    named = ml.derive("adamw", lr=0.01, betas=(0.8, 0.9), eps=0.1, weight_decay=0.2)
    assert (d.F, d.M, d.resummed) == (named.F, named.M, named.resummed)
    assert not d.M.free_symbols - {g, theta}


class Descent(ml.Method):
    """A class of one's own."""

    def __init__(self, lr: float, beta: float = 0.9):
        super().__init__(lr, (ml.Momentum(beta),), lambda f, m, theta: m[0], "descent")


SAME: dict[str, list[Callable[[], Any]]] = {
    "class": [
        lambda: ml.derive("heavy_ball"),
        lambda: ml.derive(Descent),
        lambda: ml.derive("tests.formulas.test_derive:Descent"),
    ],
    "torch_class": [
        lambda: ml.derive("adamw"),
        lambda: ml.derive(torch.optim.AdamW),
        lambda: ml.derive("torch.optim:AdamW"),
        lambda: ml.derive("torch.optim.AdamW"),
    ],
    "by_name": [
        lambda: ml.derive("adamw", lr=0.01, betas=(0.9, 0.999), weight_decay=0.1),
        lambda: ml.derive("adamw", h=0.01, beta1=0.9, beta2=0.999, lam=0.1),
        lambda: ml.derive("adamw", h=0.01, beta1=0.9, beta2=0.999, **{"lambda": 0.1}),
        lambda: ml.derive("adamw", h="0.01", beta1="0.9", beta2="0.999", lam="0.1", eps="eps"),
        lambda: ml.derive("adamw", lr=0.01, betas="(0.9, 0.999)", weight_decay=Rational(1, 10)),
        lambda: ml.derive(ml.AdamW(0.01, (0.9, 0.999), 1e-3, 0.1), eps="epsilon"),
        lambda: ml.derive(ml.AdamW, lr=0.01, betas=[0.9, 0.999], weight_decay=0.1),
    ],
    "equal_rates": [
        lambda: ml.derive("adam", beta2="beta1"),
        lambda: ml.derive("adam", beta2="beta_1"),
        lambda: ml.derive("adam", betas=("beta1", "beta1")),
    ],
    "flags": [lambda: ml.derive("adam", eps_inside_root="true"), lambda: ml.derive("adam", eps_inside_root=True)],
    "defaults": [lambda: ml.derive(ml.Signum()), lambda: ml.derive("signum", lr=1e-4, momentum=0.9, lam=0, eps=0)],
    "own_function": [
        lambda: ml.derive("heavy_ball"),
        lambda: ml.derive(lambda lr, beta: single(lambda f, m, theta: m[0], beta, lr)),
    ],
}


@pytest.mark.parametrize("name", SAME)
def test_ways_to_name_a_hyperparameter(name):
    first, *others = (make() for make in SAME[name])
    for other in others:
        assert (other.F, other.M) == (first.F, first.M)
        assert set(other.M.free_symbols) == set(first.M.free_symbols)


def test_numbers_are_exact():
    d = ml.derive("adam", betas=(0.9, 0.999), eps=1e-8, lr=1e-3)
    assert d.values["betas"] == (Rational(9, 10), Rational(999, 1000))
    assert (d.values["eps"], d.lr) == (Rational(1, 10**8), Rational(1, 1000))
    assert not (d.F.atoms(sympy.Float) | d.M.atoms(sympy.Float) | d.resummed.atoms(sympy.Float))
    method = single(lambda f, m, theta: 0.1 * m[0] / (f.abs(m[0]) + 0.3), 0.7)
    assert not ml.derive(method).M.atoms(sympy.Float)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_by_any_name(name):
    d, made = derive(name), ml.derive(CATALOGUE[name])
    assert (made.F, made.M, made.values) == (d.F, d.M, d.values)
    assert {str(x) for x in d.M.free_symbols} >= {"h", "g"}


def test_a_users_function_by_module_and_attribute():
    d = ml.derive("tests.problems:custom")
    assert d.lr == h
    c = ml.correction(METHODS["custom"](LR), reference_loss())
    assert close(tensors(d.M.subs(h, Rational("0.01")), SimpleNamespace(hyper={})), c.M, c.F)
