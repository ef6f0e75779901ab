"""A derivation told section by section: sentences with formulas in them, and displayed equations."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import sympy
from sympy import Eq, Expr, S, Symbol

from memoryless.formulas.algebra import number, scalar
from memoryless.formulas.formulas import Formulas
from memoryless.formulas.hyperparameters import SYMBOLS
from memoryless.formulas.net_age import NetAge, sign_of
from memoryless.formulas.symbols import (
    Beta,
    Field,
    Grad,
    GradK,
    H,
    HessK,
    Inner,
    L,
    Product,
    Total,
    g,
    h,
    k,
    name_of,
    theta,
    update,
    w,
)
from memoryless.methods.catalogue import CATALOGUE

_M, _P = Field("M"), Field("P")
_R, _dR, _K, _kappa, _loss, _velocity, _resummed, _change = (
    Symbol(name) for name in ["R", "R'", "K(grad L)", "kappa", "Ltilde", "thetadot", "M_resummed", "Delta_K"]
)

_VALIDITY = "All this is to first order in the step size; ml.audit measures whether it holds in a run."

Sentence = Sequence[str | Expr]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: sentences of text and formulas, and displayed equations (an Eq alone)."""

    title: str
    lines: Sequence[Sentence | Eq]


def document(d: Formulas) -> list[Section]:
    """The derivation, section by section.

    Args:
        d: any.
    """
    if d.coupling != 0:
        return list(_coupled(d))
    sections = [
        Section("Assumptions", list(_assumptions(d))),
        Section("Memory", list(_memory(d))),
        Section("Update", list(_update(d))),
    ]
    if d.anatomy:
        sections += [
            Section("Net age", list(_net_age(d, d.anatomy))),
            Section("Modified loss", list(_modified_loss(d, d.anatomy))),
        ]
    sections.append(Section("Resummed correction", list(_resummed_lines(d))))
    if d.step is None:
        sections.append(Section("Modified flow", list(_flow(d))))
    if (factor := _lion_k(d)) is not None:
        sections.append(Section("Lion-K theorem", list(_theorem(d, factor))))
    if limits := [line for limit in d.limits for line in _limit(*limit)]:
        sections.append(Section("Limits", limits))
    return [*sections, Section("In words", [*reading(d), [_VALIDITY]])]


def _coupled(d: Formulas) -> Iterator[Section]:
    """A decay in the gradient: the same for the gradient of another loss, then in that of L."""
    whole = L + d.coupling / 2 * Total(theta**2)
    first, *others = document(replace(d, coupling=S.Zero))
    meaning: Sentence = ["The decay is coupled into the gradient: below, ", g, " and ", L, " are of ", whole, ", H is H + "]
    yield Section(first.title, [*first.lines, [*meaning, d.coupling, "."]])
    yield from others
    if not d.aligned:
        return
    lines = [_eq(update, d.F), _eq(_M, d.M), _eq(_resummed, d.moved), _eq(w, d.drifts[w])]
    flow = [_eq(_velocity, d.flow)] if d.step is None else []
    loss = [_eq(_loss, d.modified_loss)] if d.modified_loss is not None else []
    yield Section("In terms of the gradient without the decay", [*lines, *flow, *loss])


def _eq(left: Expr, right: Expr) -> Eq:
    return Eq(left, right, evaluate=False)


def _assumptions(d: Formulas) -> Iterator[Sentence]:
    when = ["the memory has settled, n → ∞"] if d.step is None else ["at step ", d.step, ", from an empty memory"]
    v, where = Field("v"), [_eq(g, Symbol("grad L")), ", ", _eq(Symbol("H"), Symbol("hess L")), " at ", theta]
    yield ["Full batch; ", *when, "; ", *where, "; products are elementwise, but ", H(v), " is the Hessian applied to ", v, "."]
    yield [
        "To first order in ",
        h,
        " the iterate of k steps ago lies ",
        Product(k, h, update),
        " back, so its gradient was ",
        g + Product(k, w),
        " with ",
        _eq(w, h * H(update)),
        ".",
    ]
    if d.lr != h:
        yield ["The step size is ", _eq(h, d.lr), "."]
    if not d.frozen.subs(g, 0).is_finite and not d.frozen.has(GradK):
        yield ["The update jumps where a coordinate of ", g, " is 0; the formulas hold where none is."]


def _memory(d: Formulas) -> Iterator[Sentence]:
    for v in d.variables:
        c, age = v.moment(0, d.step), v.mean_age(d.step)
        if d.step is not None and d.step.is_Integer and d.step < v.lag:
            yield [v.m, " is still empty"]
        elif age == 0:
            yield [v.m, " holds ", _eq(v.m, c * v.g), ", the present alone"]
        else:
            frozen, mean_age = _eq(v.m, c * v.g), _eq(*d.ages[v.m])
            yield [v.m, " remembers ", v.g, ", decay rate ", v.beta, ": frozen ", frozen, ", mean age ", mean_age]
    if d.aligned and not d.settled:
        yield ["A mean age is counted in steps of the present update, since those of the past differed from it in size."]


def _update(d: Formulas) -> Iterator[Sentence | Eq]:
    yield _eq(update, d.readout)
    yield ["with the history frozen ", _eq(update, d.F), ", and with the history that lags"]
    yield _eq(_M, d.M if d.aligned else d.lagging)
    if not d.aligned:
        yield from (_eq(symbol, drift) for symbol, drift in d.drifts.items() if d.lagging.has(symbol))
    if twin := _twin(d):
        yield [f"F and M are those of {twin}: to first order the two do the same."]


def _net_age(d: Formulas, a: NetAge) -> Iterator[Sentence | Eq]:
    decay = a.decay * theta
    yield ["Write ", _eq(update, decay + Product(_P, g)), " with the preconditioner ", _eq(_P, a.P), ". Then"]
    yield _eq(_M, Product(h, _kappa, _P, H(update)))
    yield ["with the net age ", _eq(_kappa, a.symbolic), ": mean ages times the elasticities of the update."]
    if a.R is None:
        yield ["No closed form was found for ∫P(g) g dg."]
    else:
        named = f", the {name}" if (name := name_of(a.R)) else ""
        yield [_eq(_dR, Product(_P, g)), " has the integral ", _eq(_R, a.R), named, "."]
        yield ["What H acts on is a gradient too:"]
        yield _eq(H(update), Grad(_potential(a.R) + a.decay * (Total(g * theta) - L)))


def _valued(a: NetAge, kappa: Expr) -> Expr:
    """An expression in the ages' symbols, with its value if that is a number."""
    value = number(kappa.subs(a.ages))
    return _eq(kappa, value) if value is not None and kappa.free_symbols else kappa


def _modified_loss(d: Formulas, a: NetAge) -> Iterator[Sentence | Eq]:
    if d.modified_loss is not None:
        yield [
            "The net age is the same for every coordinate, so the memoryless iteration descends a loss: ",
            _eq(update + _M, a.decay * theta + Product(_P, Grad(_loss))),
            " with",
        ]
        yield _loss_of(a)
    elif a.constant:
        yield ["The net age is the same for every coordinate, but no closed form was found for the loss."]
    else:
        yield [
            "None: one exists only if the ratio of ",
            _M,
            " to ",
            Product(h, _P, H(update)),
            ", the net age, is the same for every coordinate; but it changes with ",
            g,
            ":",
        ]
        yield _eq(_kappa, a.symbolic)
        if a.at != g and not any(end.has(sympy.Limit) for end in a.ends):
            low, high = a.ends
            size = sympy.Abs(g)
            yield ["from ", _valued(a, low), " for small ", size, " to ", _valued(a, high), " for large ", size, "."]


def _resummed_lines(d: Formulas) -> Iterator[Sentence | Eq]:
    yield ["Only the path is linearized, not the update; to first order in ", h, " it is ", _M, "."]
    yield _eq(_resummed, d.moved)
    if d.aligned:
        yield ["with ", _eq(w, d.drifts[w])]


def _flow(d: Formulas) -> Iterator[Sentence | Eq]:
    yield _eq(_velocity, d.flow)
    if d.anatomy and (loss := d.anatomy.flow_loss) is not None:
        yield ["which is ", -Product(_P, Grad(_loss)), " with"]
        yield _eq(_loss, loss)


def _limit(condition: Eq, d: Formulas) -> Iterator[Sentence | Eq]:
    if d.anatomy:
        line: list[str | Expr] = [condition, ": ", _eq(_P, d.anatomy.P), ", ", _eq(_kappa, _short(d.anatomy))]
    else:
        line = [condition, ": ", _eq(_M, d.M)]
    yield [*line, f"; F and M of {twin}" if (twin := _twin(d)) else ""]
    if d.anatomy and d.modified_loss is not None and d.anatomy.kappa != 0:
        yield _loss_of(d.anatomy)


def _short(a: NetAge) -> Expr:
    """Kappa, in terms of the mean ages' symbols where several ages play together."""
    return a.symbolic if len(set(a.ages.values())) > 1 else a.kappa


def _loss_of(a: NetAge) -> Eq:
    return _eq(_loss, a.loss_of(_short(a)))


def _twin(d: Formulas) -> str | None:
    """Another catalogue method with the same steady F and M, up to the names of its rates."""
    symbols = d.F.free_symbols | d.M.free_symbols
    rates = sorted((b for b in symbols if isinstance(b, Beta)), key=str)
    if d.step is not None or not rates:
        return None
    for name, values in SYMBOLS.items():
        theirs = {x for value in values.values() for x in (value if isinstance(value, tuple) else (value,))}
        own = sorted((b for b in theirs if isinstance(b, Beta)), key=str)
        if name == d.name or len(own) != len(rates) or theirs - set(own) != symbols - {*rates, g, theta}:
            continue
        other, renamed = _catalogue(name), dict(zip(own, rates, strict=True))
        if sympy.simplify(other.F.subs(renamed) - d.F) == 0 and sympy.simplify(other.M.subs(renamed) - d.M) == 0:
            return name
    return None


@functools.cache
def _catalogue(name: str) -> Formulas:
    return Formulas.of(CATALOGUE[name], SYMBOLS[name])


def reading(d: Formulas) -> Iterator[Sentence | Eq]:
    """What the formulas say, in words.

    Args:
        d: any.
    """
    a = d.anatomy
    if a is None:
        yield from _reading_without_anatomy(d)
        return
    factor, total = (S.One, None) if a.R is None else _potential(a.R).as_independent(Total, as_Add=False)
    norm: Sentence = ["Σ R(g), R' = P g,"] if total is None else [total]
    free = " (without decay, on any loss)" if a.decay else " (on any loss)"
    if a.at == g or a.sign_of_P(factor) != 1:
        which = ["where ", Product(_kappa, _P / factor), " is positive and raises it through the others"]
        yield ["Memory lowers ", *norm, " through coordinates ", *which, free, "."]
        return
    if a.constant:
        sign = a.sign(a.symbolic)
        if sign == 0:
            yield ["To first order memory does nothing: the update's slope is 0. The resummed correction sees what is left."]
        elif sign is not None:
            yield [f"Memory {_verb(sign)}: step by step it {_moves(sign)} ", *norm, free, "."]
        else:
            yield [
                "Memory regularizes, lowering ",
                *norm,
                ", where ",
                sympy.Gt(a.symbolic, 0, evaluate=False),
                ", and anti-regularizes, raising it, where ",
                sympy.Lt(a.symbolic, 0, evaluate=False),
                free,
                ".",
            ]
        return
    scale = _scale(a)
    for end, small in zip(a.ends, (True, False), strict=True):
        size: Sentence = (
            [scale[0], " ≪ " if small else " ≫ ", scale[1]] if scale else ["small " if small else "large ", sympy.Abs(g)]
        )
        where = ["Per step, coordinates with ", *size]
        sign = a.sign(end)
        if sign == 0:
            yield [*where, " leave ", *norm, " as it is: their net age goes to 0."]
        elif sign is not None:
            yield [*where, f" {'lower' if sign > 0 else 'raise'} ", *norm, ": net age ", _valued(a, end), free, "."]
        else:
            yield [
                *where,
                " raise ",
                *norm,
                " if ",
                sympy.Lt(end, 0, evaluate=False),
                ", and lower it if ",
                sympy.Gt(end, 0, evaluate=False),
                free,
                ".",
            ]
    if (crossing := a.crossing) is not None:
        quantity, value = crossing
        known = number(value.subs(a.ages))
        if known is None:
            yield ["In between, the sign changes at ", _eq(quantity, value), ", if that is positive."]
        elif known > 0:
            yield ["In between, the sign changes at ", _eq(quantity, known), "."]


def _reading_without_anatomy(d: Formulas) -> Iterator[Sentence]:
    if _lion_k(d) is not None:
        yield ["Memory never raises ", _K, " (for any convex K, without decay, on any loss)."]
    elif not d.aligned:
        yield [
            "At this step the updates of the past are no multiples of the present one: ",
            "the sign of memory's effect cannot be read off; ml.audit measures it.",
        ]
    else:
        yield [
            "The update is not a preconditioner on each coordinate's gradient beside a decay: ",
            "the sign of memory's effect cannot be read off; ml.audit measures it.",
        ]


def _lion_k(d: Formulas) -> Expr | None:
    """The positive c with M = c h Hess K(g) H F, F = grad K(g) + lambda theta; None if that is not the form of F and M."""
    if d.step is not None or not d.F.has(GradK):
        return None
    rate = sympy.simplify((d.F - GradK(g)) / theta)
    factor = sympy.simplify(sympy.expand_mul(d.M).coeff(HessK(g, H(GradK(g)))) / d.lr)
    if rate.has(Field) or sign_of(factor) != 1:
        return None
    return scalar(factor) if sympy.simplify(d.M - factor * d.lr * HessK(g, H(d.F))) == 0 else None


def _theorem(d: Formulas, factor: Expr) -> Iterator[Sentence | Eq]:
    slope = H(GradK(g))
    yield ["H is symmetric, so that along ", theta]
    yield _eq(Grad(_K), slope)
    yield ["and a step by ", -Product(h, _M), ", without decay, changes ", _K, " by"]
    yield _eq(_change, -h * Inner(slope, _M))
    yield _eq(_change, -(h**2) * factor * Inner(slope, HessK(g, slope)))
    yield ["which is never positive where K is convex: memory cannot anti-regularize ", _K, "."]


def _potential(R: Expr) -> Expr:
    """The sum of R over coordinates, in one piece."""
    return Total(R, evaluate=False) if R.is_Add else Total(R)


def _verb(sign: int) -> str:
    return "regularizes" if sign > 0 else "anti-regularizes"


def _moves(sign: int) -> str:
    return "lowers" if sign > 0 else "raises"


def _scale(a: NetAge) -> tuple[Expr, Expr] | None:
    """The quantity, |g| or g^2, and the symbol with which kappa scales."""
    for eps in a.symbolic.free_symbols - set(a.ages):
        for size in (sympy.Abs(g), g**2):
            if not sympy.simplify(a.symbolic.subs(eps, size * Symbol("t", positive=True))).has(g):
                return size, eps
    return None
