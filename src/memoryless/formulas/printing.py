"""A derivation printed: as text, Markdown, LaTeX, HTML, and as a dictionary for JSON."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false
# pyright: reportIncompatibleMethodOverride=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import base64
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import latex2mathml.converter
import sympy
from markupsafe import Markup
from sympy import Eq, Expr, Symbol
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from memoryless.formulas.algebra import approximated, evaluated
from memoryless.formulas.document import Sentence, document, reading
from memoryless.formulas.formulas import Formulas
from memoryless.formulas.symbols import Exponent, L, g, norm_of, theta
from memoryless.render.page import fill

_GREEK = {"beta": "β", "rho": "\u03c1", "tau": "τ", "epsilon": "ε", "lamda": "λ", "theta": "θ", "kappa": "κ"}
# name: as text, as LaTeX
_NAMES = {
    "Ltilde": ("L̃", r"\tilde{L}"),
    "thetadot": ("dθ/dt", r"\dot{\theta}"),
    "M_resummed": ("M resummed", r"M_{\mathrm{resummed}}"),
    "Delta_K": ("ΔK", r"\Delta K"),
    "K(grad L)": ("K(∇L)", r"K(\nabla L)"),
    "grad L": ("∇L", r"\nabla L"),
    "hess L": ("∇²L", r"\nabla^2 L"),
}
_RAISED, _LOWERED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"), str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class _Ordered:
    """Sums as one writes them: L first, then the simple terms, what is subtracted last."""

    def _as_ordered_terms(self, expr: Expr, order: Any = None) -> list[Expr]:
        terms = super()._as_ordered_terms(expr, order=order)
        index = any(x.is_integer for x in expr.free_symbols)  # n + 1
        return sorted(
            terms,
            key=lambda x: (x.could_extract_minus_sign(), not x.has(L), sympy.count_ops(x), x.is_number is index),
        )


class TexPrinter(_Ordered, LatexPrinter):
    """LaTeX; the nodes of `formulas.symbols` print themselves."""


class TextPrinter(_Ordered, StrPrinter):
    """One line of plain text with Greek letters, norms and superscripts."""

    def _print_Symbol(self, expr: Symbol) -> str:
        if expr.name in _NAMES:
            return _NAMES[expr.name][0]
        stem, _, index = expr.name.partition("_")
        return _GREEK.get(stem, stem) + (index.translate(_LOWERED) if index.isdigit() else f"_{index}" if index else "")

    _print_Dummy = _print_Symbol

    def _print_Abs(self, expr: Expr) -> str:
        return f"|{self._print(expr.args[0])}|"

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        if expr.exp.is_Integer and expr.exp > 1:
            return self.parenthesize(expr.base, PRECEDENCE["Pow"]) + str(expr.exp).translate(_RAISED)
        return super()._print_Pow(expr, rational)

    def _print_Product(self, expr: Expr) -> str:
        return " ".join(self.parenthesize(x, PRECEDENCE["Mul"]) for x in expr.args)

    def _print_Relational(self, expr: Any) -> str:
        return f"{self._print(expr.lhs)} {'=' if expr.rel_op == '==' else expr.rel_op} {self._print(expr.rhs)}"

    def _print_H(self, expr: Expr) -> str:
        return f"H[{self._print(expr.args[0])}]"

    def _print_Grad(self, expr: Expr) -> str:
        return f"∇[{self._print(expr.args[0])}]"

    def _print_GradK(self, expr: Expr) -> str:
        return f"∇K({self._print(expr.args[0])})"

    def _print_HessK(self, expr: Expr) -> str:
        return f"∇²K({self._print(expr.args[0])})[{self._print(expr.args[1])}]"

    def _print_Inner(self, expr: Expr) -> str:
        return f"⟨{self._print(expr.args[0])}, {self._print(expr.args[1])}⟩"

    def _print_Sum(self, expr: Any) -> str:
        term, (index, first, last) = expr.args
        return f"Σ_{{{self._print(index)}={self._print(first)}..{self._print(last)}}}[{self._print(term)}]"

    def _print_Total(self, expr: Expr) -> str:
        if name := norm_of(expr.args[0]):
            v, below, power = name[0].subs(g, Symbol("∇L", real=True)), *name[1:]
            index = ",".join(self._print(x) for x in below) if isinstance(below, sympy.Tuple) else self._print(below)
            index = index.translate(_LOWERED) if index.isdigit() else f"_{{{index}}}" if index else ""
            raised = "" if power == 1 else "²" if power == 2 else f"^{{{self._print(power)}}}"
            return f"‖{self._print(v)}‖{index}{raised}"
        return f"∇L·{self._print(theta)}" if expr.args[0] == g * theta else f"Σ[{self._print(expr.args[0])}]"


def plain(expression: Expr) -> str:
    """One line of text.

    Args:
        expression: of the kind that derivations are made of.
    """
    line = TextPrinter({"full_prec": False}).doprint(_decimals(expression))
    return line.replace("**", "^").replace("*", " ").replace("sqrt(", "√(")


def _decimals(expression: Expr) -> Expr:
    """Fractions of large numbers as decimals, and those with a short one; the step's number in its place."""
    expression = evaluated(expression)

    def clumsy(q: sympy.Rational) -> bool:
        return q.q > 1000 or abs(q.p) > 10_000 or (q.q > 10 and sympy.Rational(f"{float(q):.4g}") == q)

    if isinstance(expression, Eq):
        return Eq(_decimals(expression.lhs), _decimals(expression.rhs), evaluate=False)
    expression = approximated(expression, 6, lambda number: number.has(Exponent) and not number.is_integer)
    return expression.xreplace(
        {q: sympy.Float(q, 6) for q in expression.atoms(sympy.Rational) if not q.is_Integer and clumsy(q)}
    )


def tex(expression: Expr) -> str:
    """LaTeX, to stand between dollars.

    Args:
        expression: of the kind that derivations are made of.
    """
    settings = {"symbol_names": {Symbol(name): shown for name, (_, shown) in _NAMES.items()}}
    return TexPrinter(settings | {"fold_short_frac": False, "mul_symbol": None}).doprint(_decimals(expression))


def title(d: Formulas) -> str:
    """Name and hyperparameters.

    Args:
        d: any.
    """

    def shown(value: Any) -> str:
        return (
            f"({', '.join(map(shown, value))})"
            if isinstance(value, tuple)
            else plain(value)
            if isinstance(value, Expr)
            else str(value)
        )

    values = ", ".join(f"{key}={shown(value)}" for key, value in d.values.items() if value is not None and value is not False)
    return f"{d.name}({values})"


def text(d: Formulas) -> str:
    """Plain text for a terminal.

    Args:
        d: any.
    """
    blocks = [title(d)]
    for section in document(d):
        lines = [f"    {plain(line)}" if isinstance(line, Eq) else f"  {_flat(line, plain)}" for line in section.lines]
        blocks.append("\n".join([section.title, *lines]))
    return "\n\n".join(blocks)


def _flat(line: Sentence, printed: Any) -> str:
    return "".join(piece if isinstance(piece, str) else printed(piece) for piece in line)


def markdown(d: Formulas, level: int = 1) -> str:
    """Markdown with LaTeX between dollars.

    Args:
        d: any.
        level: of the top heading.
    """
    blocks = [f"{'#' * level} `{title(d)}`"]
    for section in document(d):
        blocks.append(f"{'#' * (level + 1)} {section.title}")
        blocks += [
            f"$$ {tex(line)} $$" if isinstance(line, Eq) else _flat(line, lambda x: f"${tex(x)}$") for line in section.lines
        ]
    return "\n\n".join(blocks) + "\n"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("memoryless", "formulas"),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)

# With the fonts of some machines Chromium draws the parentheses of a line three lines tall, so the page brings its own: the
# characters that derivations hold of STIX Two Math (SIL Open Font License, math.OFL.txt), from npm's @fontsource/stix-two-math
# 5.3.0 by
#   pyftsubset stix-two-math-latin-400-normal.woff2 --flavor=woff --with-zopfli --no-hinting --layout-features=ssty
#     --drop-tables+=GPOS,GDEF --name-IDs='*' --unicodes=U+20-7E,U+A0,U+AC,U+B1,U+B7,U+D7,U+2D9,U+2DC,U+391-3A9,U+3B1-3C9,U+3D1,
#     U+3D5,U+3F1,U+3F5,U+2016,U+2026,U+2032,U+2061-2064,U+210E,U+2192,U+2202,U+2207,U+220F,U+2211,U+2212,U+221A,U+221E,U+2227,
#     U+2228,U+222B,U+2260,U+2264,U+2265,U+226A,U+226B,U+22C5,U+27E8,U+27E9,U+1D434-1D467,U+1D6E4-1D71B
MATH_FONT = Path(__file__).with_name("math.woff")

# What the sentences hold beside ASCII.
_TEX = {
    "∇": r"\nabla",
    "∫": r"\int",
    "Σ": r"\textstyle\sum",
    "θ": r"\theta",
    "∞": r"\infty",
    "→": r"\to",
    "≪": r"\ll",
    "≫": r"\gg",
    "²": "^2",
}


def latex(d: Formulas) -> str:
    """A LaTeX article that compiles as it is.

    Args:
        d: any.
    """
    table = str.maketrans({character: f"${command}$" for character, command in _TEX.items()} | {"_": r"\_"})

    def printed(line: Sentence) -> str:
        return "".join(piece.translate(table) if isinstance(piece, str) else f"${tex(piece)}$" for piece in line)

    return _ENVIRONMENT.get_template("derivation.tex.j2").render(
        heading=title(d).partition("(")[0].translate(table),
        values=_values(d),
        sections=_printed(d, printed, tex),
        version=version("memoryless"),
    )


def html(d: Formulas) -> str:
    """One self-contained HTML page; the formulas are MathML, which browsers render by themselves.

    Args:
        d: any.
    """

    def mathml(expression: Expr, display: str = "inline") -> Markup:
        return Markup(latex2mathml.converter.convert(tex(expression), display=display))

    def printed(line: Sentence) -> Markup:
        return Markup("").join(piece if isinstance(piece, str) else mathml(piece) for piece in line)

    return fill(
        "formulas/derivation.html.j2",
        title=title(d),
        description=f"What the memory of {d.name} does to the loss, as formulas",
        sections=_printed(d, printed, lambda e: mathml(e, "block")),
        math_font=base64.b64encode(MATH_FONT.read_bytes()).decode(),
    )


def _printed(d: Formulas, inline: Any, display: Any) -> list[tuple[str, list[tuple[bool, str]]]]:
    """Sections with their lines printed: (title, [(is it a displayed equation?, text)])."""
    return [
        (s.title, [(True, display(line)) if isinstance(line, Eq) else (False, inline(line)) for line in s.lines])
        for s in document(d)
    ]


def _values(d: Formulas) -> str:
    def shown(value: Any) -> str:
        return (
            f"({', '.join(map(shown, value))})"
            if isinstance(value, tuple)
            else tex(value)
            if isinstance(value, Expr)
            else rf"\mathrm{{{value}}}"
        )

    names = {key: key.replace("_", r"\_") for key, value in d.values.items() if value is not None and value is not False}
    pairs = [rf"\mathtt{{{name}}}={shown(d.values[key])}" for key, name in names.items()]
    return ", ".join(pairs)


def as_dict(d: Formulas) -> dict[str, Any]:
    """For JSON: every formula in SymPy's own notation, as text, and in LaTeX.

    Args:
        d: any.
    """

    def both(expression: Expr | None) -> dict[str, str] | None:
        if expression is None:
            return None
        return {"sympy": str(evaluated(expression)), "text": plain(expression), "latex": tex(expression)}

    a = d.anatomy
    return {
        "method": d.name,
        "hyperparameters": {key: str(value) for key, value in d.values.items()},
        "step": None if d.step is None else str(d.step),
        "variables": [
            {
                "symbol": str(v.m),
                "g": both(v.g),
                "beta": str(evaluated(v.beta)),
                "weight": both(v.moment(0, d.step)),
                "mean_age": both(v.mean_age(d.step)),
            }
            for v in d.variables
        ],
        "F": both(d.F),
        "M": both(d.M),
        "drifts": {str(symbol): both(drift) for symbol, drift in d.drifts.items()},
        "resummed": both(d.moved),
        "flow": both(d.flow) if d.step is None else None,
        "preconditioner": both(a.P) if a else None,
        "net_age": both(a.kappa) if a else None,
        "potential": both(a.R) if a else None,
        "modified_loss": both(d.modified_loss),
        "reading": [plain(line) if isinstance(line, Eq) else _flat(line, plain) for line in reading(d)],
    }
