"""The page of several optimizers on one loss: it says what `Comparison.as_dict` says."""

import dataclasses
import json
import math
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import memoryless as ml
from memoryless.audits.compare import Compared, Comparison
from memoryless.render.comparison import page
from memoryless.render.numbers import FAR, NOTHING, SignedLog, cosine, near, number, percent
from memoryless.render.style import KINDS, SIGN
from tests.render.test_page import HOSTILE, Parsed, needs_chromium, visit


@cache
def compared() -> Comparison:
    """Memory that regularizes, that anti-regularizes, that is neutral, none at all, and a run that diverges."""
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.linspace(0.5, 2.0, 40, dtype=torch.float64))
    optimizers = {
        "ball": ml.HeavyBall(1e-3),
        "nesterov": ml.Nesterov(1e-2),
        "adam": ml.Adam(1e-2, betas=(0.0, 0.9)),
        "plain": ml.HeavyBall(1e-3, momentum=0.0),
        "wild": ml.HeavyBall(1.0),
    }
    found = ml.compare(optimizers, loss, steps=10, measures=["gradient_norm_squared", "sharpness"])
    return dataclasses.replace(found, about={"problem": "a quartic", "command": "memoryless compare ball"})


def hostile() -> Comparison:
    found = compared()
    rows = tuple(Compared(f"{row.name}, {HOSTILE}", row.audit, row.reason and row.reason + HOSTILE) for row in found)
    return dataclasses.replace(found, rows=rows, about={HOSTILE: HOSTILE})


class Tables(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._open = True

    def handle_endtag(self, tag: str):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str):
        if self._open:
            self.tables[-1][-1][-1] += data


def charts_of(html: str) -> str:
    lines = Parsed(html).scripts[-1].splitlines()
    return next(line for line in lines if line.startswith("const charts = ")).removeprefix("const charts = ").rstrip(";")


def test_the_tables_say_what_the_dictionary_says():
    found = compared()
    audits = [(row["name"], row["audit"]) for row in json.loads(found.to_json())["rows"] if row["audit"]]
    *measures, arrived = Tables(found.to_html()).tables
    assert len(measures) == 2
    for k, table in enumerate(measures):
        for (name, audit), cells in zip(audits, table[1:], strict=True):
            e = audit["effects"][k]
            assert cells == [
                name,
                number(e["value"], 4),
                *(percent(e[kind]) for kind in KINDS),
                percent(e["random"]).replace("+", "± "),
                percent(e["slopes"]["measured"]) + ("" if e["straight"] else " !"),
                f"{SIGN[e['word']]} {e['word']}",
            ]
    for (name, audit), cells in zip(audits, arrived[2:], strict=True):
        validity = audit["validity"]
        agreements = [validity[kind] for kind in KINDS if kind != "measured"]
        by = "no memory" if name == "plain" else validity["go_by"] or "measured"
        assert cells[:5] == [name, f"{audit['lr']:g}", "10", number(audit["loss"], 4), by]
        assert cells[5:] == [
            text
            for a in agreements
            for text in (
                (cosine(a["cosine"]), number(a["error"]), "holds" if a["holds"] else "fails") if a else (NOTHING, NOTHING, "")
            )
        ]


def test_the_answers_come_first():
    text = " ".join(Parsed(compared().to_html()).text.split())
    places = [
        text.index(part) for part in ("memory anti-regularizes", "Not at equal loss", "wild is not here: diverged", "Change of")
    ]
    assert places == sorted(places)
    low, high = (f(row.audit.loss for row in compared() if row.audit) for f in (min, max))
    assert f"between {number(low, 3)} under" in text
    assert f"and {number(high, 3)} under" in text
    assert text.count("memoryless compare ball") == 1


@pytest.mark.parametrize("make", [compared, hostile])
def test_self_contained_and_escaped(make):
    found = make()
    parsed = Parsed(found.to_html())
    assert (parsed.loads, len(parsed.scripts)) == (["data:,"], 3)
    assert not {"img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert parsed.meta["description"] == found.verdict
    assert all(row.reason.rstrip(".") in parsed.text for row in found if row.reason)


def test_nothing_but_refusals_and_numbers_that_are_not_finite():
    found = compared()
    refused = dataclasses.replace(found, rows=tuple(row for row in found if row.audit is None))
    assert "No optimizer could be run." in Parsed(refused.to_html()).text
    data = found.as_dict()
    for row in data["rows"][:2]:
        row["audit"]["effects"][0] |= {"measured": None, "first": None, "random": None}
    html = page(data)
    cells = {cell.strip(" ±%!") for table in Tables(html).tables for row in table for cell in row}
    assert not {"nan", "inf", "None", "undefined"} & cells
    json.loads(charts_of(html), parse_constant=pytest.fail)


def test_one_failure_does_not_hide_the_rest():
    assert near([1.0, -2.0 * FAR, math.nan, None, 0.9 * FAR], [0.5, -1.0, None]) == [1.0, None, None, None, 0.9 * FAR]
    data = compared().as_dict()
    effect = data["rows"][0]["audit"]["effects"][0]
    effect["path"] = 1e9
    html = page(data)
    assert f"Too far to be drawn: prediction along the path for ball, {percent(1e9)}." in Parsed(html).text
    (chart,) = json.loads(charts_of(html))["effect 0"].values()
    first = {trace["name"]: trace["x"] for trace in chart["data"]}
    assert first[KINDS["path"]][0] is None
    shown = [row["audit"]["effects"][0] for row in data["rows"] if row["audit"]]
    known = [e[kind] for e in shown for kind in KINDS if e[kind] != 1e9] + [s * e["random"] for e in shown for s in (-1, 1)]
    axis = SignedLog.of(known)
    assert first[KINDS["measured"]] == axis.place([e["measured"] for e in shown])
    assert first["neutral: no more than chance"][:2] == axis.place([-shown[0]["random"], shown[0]["random"]])


@needs_chromium
def test_in_a_browser(tmp_path: Path):
    count = """<script>
    const drawn = div => div.querySelector(".mlayer .trace path") && /^ball/.test(div.querySelector(".ytick text").textContent);
    document.body.append("drawn " + [...document.querySelectorAll("[data-chart]")].filter(drawn).length);
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(hostile().to_html().replace("</body>", count))
    seen = visit(file, tmp_path)
    assert (seen.errors, seen.requests) == ([], [])
    assert Parsed(seen.dom).text.rstrip().endswith("drawn 2")
