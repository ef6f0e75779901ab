"""A derivation as text, Markdown, LaTeX, HTML and JSON."""

# SymPy's annotations do not describe what it returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false, reportOptionalIterable=false

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import latex2mathml.converter
import pytest
import sympy
from fontTools.ttLib import TTFont

import memoryless as ml
from memoryless.formulas.derive import Derivation
from memoryless.formulas.printing import MATH_FONT, plain, tex
from memoryless.formulas.symbols import GradK, H, HessK, Total
from memoryless.methods.catalogue import CATALOGUE
from tests.problems import METHODS
from tests.render.test_page import IN_CI, Parsed, needs_chromium, visit

PDFLATEX = shutil.which("pdflatex")
needs_pdflatex = pytest.mark.skipif(
    not PDFLATEX and not IN_CI, reason="no pdflatex on PATH (apt-get install texlive-latex-base)"
)
MORE = {
    "adamw_without_eps": lambda: ml.derive("adamw", eps=0),
    "adamw_numbers": lambda: ml.derive(METHODS["adamw"](0.01)),
    "heavy_ball_coupled_decay": lambda: ml.derive("heavy_ball", weight_decay="lambda"),
    "adam_at_a_step": lambda: ml.derive("adam", step=2),
    "heavy_ball_at_n": lambda: ml.derive("heavy_ball", step="n"),
    "lion_at_a_step": lambda: ml.derive("lion", step=2),
    "lion_at_n": lambda: ml.derive("lion", step="n"),
    "adamw_equal_betas": lambda: ml.derive("adamw", beta2="beta1", eps_inside_root=True),
    "nadam_numbers": lambda: ml.derive(ml.NAdam()),
    "custom": lambda: ml.derive(METHODS["custom"](0.01)),
    "unsmoothed": lambda: ml.derive("lion", smoothing=0),
}
ALL = [*CATALOGUE, *MORE]
HAS_LOSS = {"heavy_ball", "heavy_ball_at_n", "nesterov", "adamw_without_eps", "heavy_ball_coupled_decay", "unsmoothed"}


@cache
def derivation(name: str) -> Derivation:
    return MORE[name]() if name in MORE else ml.derive(name)


@cache
def text(name: str) -> str:
    return derivation(name).text()


@cache
def markdown(name: str) -> str:
    return derivation(name).markdown()


@cache
def page(name: str) -> str:
    return derivation(name).to_html()


@cache
def article(name: str) -> str:
    return derivation(name).latex()


def formulas(document: str) -> list[str]:
    """Everything between dollars."""
    return [a or b for a, b in re.findall(r"\$\$ (.+?) \$\$|\$([^$]+)\$", document)]


@pytest.mark.parametrize("name", ALL)
def test_what_every_document_holds(name):
    d = derivation(name)
    for printed, document in ((plain, text(name)), (tex, markdown(name)), (tex, article(name))):
        for formula in (d.F, d.M if d.aligned else d.lagging, d.moved):
            assert printed(formula) in document
        assert ("None: one exists only if" in document) == (d.anatomy is not None and d.modified_loss is None)
        assert ("descends a loss" in document) == (name in HAS_LOSS)
        assert "In words" in document
        assert "to first order in the step size; ml.audit measures" in document
        assert (printed(d.flow) in document) if d.step is None else ("Modified flow" not in document)


@pytest.mark.parametrize("name", ALL)
def test_titles_and_sections_are_the_same_in_every_format(name):
    titles = [line for line in text(name).splitlines()[1:] if line and not line.startswith(" ")]
    assert re.findall(r"^## (.+)$", markdown(name), re.M) == titles
    assert re.findall(r"\\subsection\*\{(.+)\}", article(name)) == titles
    assert re.findall(r"<h2>(.+)</h2>", page(name)) == titles
    assert text(name).splitlines()[0].startswith(f"{derivation(name).name}(")


@pytest.mark.parametrize("name", ALL)
def test_text_is_plain(name):
    body = text(name).partition("\n")[2]  # the title holds names such as weight_decay
    assert not re.search(r"\\|\$|\*|_(?!\{)|sqrt|Abs|Total|\bH\(|GradK|Piecewise|nan|zoo", body)
    assert max(map(len, text(name).splitlines())) < 1000


@pytest.mark.parametrize("name", ALL)
def test_latex_is_latex(name):
    for document in (markdown(name), article(name)):
        found = formulas(document)
        assert found
        for formula in found:
            assert formula.count("{") == formula.count("}")
            root = ElementTree.fromstring(latex2mathml.converter.convert(formula))
            assert not any("\\" in (element.text or "") for element in root.iter())
    assert article(name).isascii()


@needs_pdflatex
@pytest.mark.parametrize("name", ALL)
def test_latex_compiles(name, tmp_path):
    assert PDFLATEX, "no pdflatex on PATH"
    (tmp_path / "paper.tex").write_text(article(name))
    done = subprocess.run(
        [PDFLATEX, *["-interaction=nonstopmode", "-halt-on-error", "paper.tex"]],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
    assert not re.findall(r"^(?:Overfull|LaTeX Warning|Missing character).*", log, re.M)


@pytest.mark.parametrize("name", ALL)
def test_page_is_self_contained(name):
    parsed = Parsed(page(name))
    assert parsed.loads == ["data:,"]  # the empty icon
    assert parsed.scripts == []
    assert "@import" not in parsed.style
    assert re.findall(r"url\([^,]*", parsed.style) == ["url(data:font/woff;base64"]
    assert not {"img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert parsed.meta["Content-Security-Policy"].startswith("default-src 'none';")
    assert parsed.meta["generator"] == f"memoryless {ml.__version__}"
    equations = sum(line.startswith("    ") for line in text(name).splitlines())
    assert page(name).count('class="display"') == equations > 0
    assert parsed.tags.count("math") > equations


@pytest.mark.parametrize("name", ALL)
def test_page_is_well_formed(name):
    math = re.findall(r"<math.*?</math>", page(name), re.S)
    assert math
    for formula in math:
        root = ElementTree.fromstring(formula)
        assert not any("\\" in (element.text or "") for element in root.iter())
    body = page(name).split("<body>")[1].split("</body>")[0]
    ElementTree.fromstring(body.replace("&#39;", "'").strip())


def test_names_are_escaped():
    hostile = "<script>alert(1)</script>&_{}$%"
    method = ml.Method(0.1, (ml.Momentum(0.9),), lambda f, m, theta: m[0], name=hostile)
    parsed = Parsed(ml.derive(method).to_html())
    assert parsed.scripts == []
    assert hostile in parsed.text
    assert json.loads(ml.derive(method).to_json())["method"] == hostile


@needs_chromium
@pytest.mark.parametrize("name", ["heavy_ball", "adamw", "lion_k", "custom"])
def test_in_a_browser(name, tmp_path):
    """Formulas in the page's own font: each takes room, numerators stand above denominators, none leaves the window."""
    look = """<script>
    const box = x => x.getBoundingClientRect();
    const all = selector => [...document.querySelectorAll(selector)];
    document.fonts.ready.then(fonts => {
      const found = document.createElement("pre");
      found.textContent = "seen " + JSON.stringify({
        fonts: [...fonts].map(font => font.status),
        formulas: all("math").length,
        flat: all("math").filter(x => box(x).width < 3 || box(x).height < 3).length,
        fractions: all("mfrac").filter(x => box(x.firstElementChild).bottom > box(x.lastElementChild).top).length,
        page: document.documentElement.scrollWidth > document.documentElement.clientWidth,
        inline: all("p math").filter(x => box(x).right > innerWidth).length,
      });
      document.body.append(found);
    });
    </script></body>"""
    file = tmp_path / "page.html"
    html = page(name)
    file.write_text(
        html.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'").replace("</body>", look)
    )
    seen = visit(file, tmp_path)
    assert seen.requests == []
    assert seen.errors == []
    assert "<merror" not in seen.dom
    wrong = {"flat": 0, "fractions": 0, "page": False, "inline": 0}
    assert json.loads(Parsed(seen.dom).text.split("seen ")[-1]) == {
        "fonts": ["loaded"],
        "formulas": html.count("<math"),
        **wrong,
    }


@pytest.mark.parametrize("name", ALL)
def test_the_pages_font_holds_every_character_of_its_formulas(name):
    math = " ".join(re.findall(r"<math.*?</math>", page(name), re.S))
    with TTFont(MATH_FONT) as font:
        assert set(map(ord, Parsed(math).text)) <= set(font.getBestCmap()) | {ord("\n")}
        assert "MATH" in font


def expressions(data: Any) -> list[str]:
    """The SymPy strings, wherever they stand."""
    if isinstance(data, dict):
        own = [data["sympy"]] if "sympy" in data else []
        return own + [found for value in data.values() for found in expressions(value)]
    return [found for value in data for found in expressions(value)] if isinstance(data, list) else []


@pytest.mark.parametrize("name", ALL)
def test_json_is_json(name):
    d = derivation(name)
    data = json.loads(d.to_json(), parse_constant=pytest.fail)
    assert json.loads(json.dumps(data)) == data
    assert data["method"] == d.name
    assert (data["modified_loss"] is not None) == (name in HAS_LOSS)
    assert data["M"]["text"] == plain(d.M)
    assert data["M"]["latex"] == tex(d.M)
    assert (data["M"]["text"] in text(name)) == d.aligned
    assert len(data["variables"]) == len(d.variables)
    assert (data["flow"] is None) == (d.step is not None)
    assert all(line in text(name) for line in data["reading"])


def value(expression: sympy.Expr) -> complex:
    """Of one coordinate, with some number for each symbol; the Hessian is 3, K an exponential, and a sum ends at 5."""
    numbers = {x: sympy.Rational(3 + i, 17 + i) for i, x in enumerate(sorted(expression.free_symbols, key=str))}
    numbers |= {x: sympy.S(4) for x in numbers if x.is_integer}
    finite = (
        expression.xreplace({sympy.oo: sympy.S(5)}).replace(GradK, sympy.exp).replace(HessK, lambda at, v: sympy.exp(at) * v)
    )
    return complex(finite.replace(H, lambda v: 3 * v).replace(Total, lambda v: v).subs(numbers).doit())


@pytest.mark.parametrize("name", ALL)
def test_sympy_reads_the_json(name):
    d = derivation(name)
    data = json.loads(d.to_json())
    assert len(expressions(data)) >= 5
    nodes = {"H": H, "Total": Total, "GradK": GradK, "HessK": HessK}
    formulas = {"F": d.F, "M": d.M, "resummed": d.moved, "modified_loss": d.modified_loss}
    formulas |= {"potential": d.anatomy and d.anatomy.R}
    data |= {str(symbol): data["drifts"][str(symbol)] for symbol in d.drifts}
    for key, expected in (formulas | {str(symbol): drift for symbol, drift in d.drifts.items()}).items():
        if expected is None:
            assert data[key] is None
            continue
        bound = {x for total in expected.atoms(sympy.Sum) for x in total.variables}
        symbols = {str(symbol): symbol for symbol in expected.free_symbols | bound}
        read = sympy.sympify(data[key]["sympy"], locals=symbols | nodes)
        assert value(read) == pytest.approx(value(expected), rel=1e-12)
        assert value(expected) == 0 or value(read) != pytest.approx(value(2 * expected), rel=1e-12)


def test_the_documents_hold_what_the_code_derives():
    script = Path(__file__).parents[2] / "docs" / "formulas.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: python docs/formulas.py writes them"
