import copy
import datetime
import json
import math
import os
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import memoryless as ml
from memoryless.live.run import Run
from memoryless.live.stop import Stop
from memoryless.render.numbers import plain
from memoryless.render.page import page
from memoryless.render.style import COLOUR, DARK, IN_THE_DARK

HOSTILE = "</script><script>alert(1)</script><img src=\"http://evil.invalid/x\"><a href='http://evil.invalid'>&lt;%{x} {{ 1 }}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
IN_CI = "CI" in os.environ
"""There a missing tool fails its tests: a skipped one would look like a passed one."""
needs_chromium = pytest.mark.skipif(not CHROMIUM and not IN_CI, reason="no chromium on PATH (Debian: apt-get install chromium)")


def audited_run() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    batch = torch.randn(20, 3), torch.randint(2, (20,))
    loss = ml.Loss(model, lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]), [batch])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    betas = (0.0, 0.5, 0.9, 0.95), (0.5, 0.9, 0.99, 0.995, 0.999)
    run = ml.audit_run(optimizer, loss, 30, stops=[1, 5, 30], measures=["gradient_1_norm", "sharpness"], betas=betas)
    run.about["Problem"] = "three inputs"
    return json.loads(run.to_json())


def method_alone() -> dict[str, Any]:
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
    return Run([Stop(ml.audit(ml.Adam(eps=1e-3), loss))]).as_dict()


def one_stop() -> dict[str, Any]:
    run = audited_run()
    run["stops"] = run["stops"][1:2]
    return run


def no_measure() -> dict[str, Any]:
    loss = ml.Loss.of(lambda theta: (theta**4).sum() / 4, torch.tensor([1.0, -2.0]))
    return Run([Stop(ml.audit(ml.HeavyBall(0.1, 0.9), loss, measures=[]))]).as_dict()


def hostile() -> dict[str, Any]:
    """Every name that a user chooses, and the verdict made of them."""
    run = audited_run()
    run["about"] = {HOSTILE: HOSTILE}
    run["verdict"] += HOSTILE
    for stop in run["stops"]:
        stop["method"] += HOSTILE
        stop["validity"]["notes"] = [HOSTILE]
        for other in stop["others"]:
            other["method"] += HOSTILE
            other["changes"] = {name + HOSTILE: changes for name, changes in other["changes"].items()}
        for effect in stop["effects"]:
            effect["measure"] += HOSTILE
            effect["slopes"]["layers"] = {name + HOSTILE: change for name, change in effect["slopes"]["layers"].items()}
        for found in stop["maps"]:
            found["measure"] += HOSTILE
    return run


def not_finite() -> dict[str, Any]:
    """NaN, infinity or nothing in place of every kind of number, at some stop; one stop keeps none at all."""
    run = audited_run()
    bad = [math.nan, math.inf, -math.inf]
    for k, stop in enumerate(run["stops"]):
        stop["loss"] = bad[k]
        for effect in stop["effects"]:
            effect |= {"first": bad[k], "random": bad[k], "value": bad[k], "update": bad[k]}
            layers = effect["slopes"]["layers"].items()
            effect["slopes"]["layers"] = {name: bad[k] if k == 2 else change for name, change in layers}
            if k == 2:
                effect |= {"measured": math.nan, "resummed": math.nan}
        stop["validity"]["first"] = None
        stop["validity"]["resummed"]["cosine"] = bad[k]
        for found in stop["maps"]:
            rows, columns = len(found["change"]), len(found["change"][0])
            found["change"] = [[bad[k] if k == 2 or j == i else 0.1 * (i - j) for j in range(columns)] for i in range(rows)]
        for other in stop["others"]:
            kinds = dict.fromkeys(("measured", "first", "resummed"), bad[k])
            other["changes"] = {name: {"measured": bad[k], "slopes": kinds} for name in other["changes"]}
    return run


def nulls() -> dict[str, Any]:
    """The same as JSON has it."""
    return plain(not_finite())


def many_tensors() -> dict[str, Any]:
    run = one_stop()
    for effect in run["stops"][0]["effects"]:
        effect["slopes"]["layers"] = {
            f"transformer.blocks.{i}.attention.output.weight": math.sin(9 * i) / (i + 1) for i in range(200)
        }
    return run


RUNS = (audited_run, method_alone, one_stop, no_measure, hostile, not_finite, nulls, many_tensors)


class Parsed(HTMLParser):
    """Tags, what they load, and the text of the page outside scripts and styles."""

    LOADS = ("src", "srcset", "data", "poster", "background", "action", "formaction", "ping", "manifest")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.meta: dict[str, str] = {}
        self.text = ""
        self.style = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append(tag)
        self._inside = tag
        found = {key: value or "" for key, value in attrs}
        self.loads += [value for key, value in found.items() if key in self.LOADS or (key == "href" and tag != "a")]
        self.links += [found["href"]] if tag == "a" else []
        assert not any(key.startswith("on") for key in found)
        if tag == "meta":
            self.meta[found.get("name") or found.get("http-equiv") or ""] = found.get("content", "")

    def handle_endtag(self, tag: str):
        self._inside = ""

    def handle_data(self, data: str):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "style":
            self.style += data
        else:
            self.text += data


@pytest.mark.parametrize("make", RUNS)
def test_self_contained_and_escaped(make):
    run = make()
    parsed = Parsed(page(run))
    assert parsed.loads == ["data:,"]  # the empty icon, or browsers ask the server for one
    assert parsed.links == ["https://arxiv.org/abs/2502.02132"]
    assert len(parsed.scripts) == 3
    assert not any(word in parsed.style for word in ("@import", "url("))
    assert not {"img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert parsed.meta["generator"] == f"memoryless {ml.__version__}"
    assert parsed.meta["description"] == run["verdict"]
    assert parsed.meta["Content-Security-Policy"].startswith("default-src 'none';")
    assert not {"nan", "inf", "-inf", "none", "undefined"} & set(parsed.text.lower().split())
    for stop in run["stops"]:
        assert stop["method"] in parsed.text
        assert all(effect["word"] in parsed.text for effect in stop["effects"])
        assert all(other["method"] in parsed.text for other in stop["others"])
        assert all(note in parsed.text for note in stop["validity"]["notes"])
    assert all(label in parsed.text and text in parsed.text for label, text in run["about"].items())


@pytest.mark.parametrize("make", RUNS)
def test_data_is_json(make):
    """Browsers stop at NaN."""
    lines = [line for line in Parsed(page(make())).scripts[-1].splitlines() if line.startswith("const ")]
    data = {line.split()[1]: line.split(" = ", 1)[1].rstrip(";") for line in lines}

    def refuse(constant: str):
        raise AssertionError(constant)

    for name in ("charts", "template", "axes", "steps"):
        json.loads(data[name], parse_constant=refuse)


def test_leaves_the_run_alone():
    run = audited_run()
    before = copy.deepcopy(run)
    page(run)
    assert run == before


def test_foot():
    run = audited_run()
    run["about"]["command"] = "memoryless audit --steps 30 <script.py>"
    text = " ".join(Parsed(page(run)).text.split())
    today, torch_version = datetime.date.today().isoformat(), version("torch")
    foot = f"Made by {run['about']['command']} {today}, memoryless {ml.__version__}, torch {torch_version}."
    assert foot in text
    assert text.count(run["about"]["command"]) == 1  # not in the head, too


def test_no_stop():
    with pytest.raises(ValueError, match="at least one audited stop"):
        page({"stops": []})


class Visit(NamedTuple):
    """What a browser made of a page."""

    dom: str
    errors: list[str]
    requests: list[str]


def visit(path: Path, home: Path, dark: bool = False) -> Visit:
    assert CHROMIUM, "no chromium on PATH"
    log = home / "net.json"
    command = f"""{CHROMIUM} --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-extensions
        --disable-background-networking --disable-component-update --disable-sync --user-data-dir={home / "profile"}
        --window-size=1280,3000 --virtual-time-budget=10000 --enable-logging=stderr --v=0 --log-net-log={log} --dump-dom
        --blink-settings=preferredColorScheme={0 if dark else 1}"""
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND"
    done = subprocess.run([*command.split(), nowhere, path.as_uri()], capture_output=True, text=True, timeout=180, check=True)
    events = json.loads(log.read_text())
    start = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [event["params"] for event in events["events"] if event["type"] == start and "url" in event.get("params", {})]
    # "not an origin" is the browser itself, which asks for updates and the time.
    asked = {job["url"] for job in jobs if job["initiator"] != "not an origin"}
    return Visit(
        done.stdout,
        [line for line in done.stderr.splitlines() if "CONSOLE" in line],
        sorted(url for url in asked if not url.startswith(("file:", "data:", "blob:", "chrome:"))),
    )


@needs_chromium
@pytest.mark.parametrize("make", RUNS)
def test_in_a_browser(make, tmp_path):
    """Every chart is drawn, for every measure and stop, without an error and without a request to anywhere."""
    walk = """<script>
    for (const measure of document.querySelectorAll("input[name=measure]"))
      for (let stop = 0; stop < steps.length; stop++) {
        measure.checked = true; slider.value = stop;
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        for (const div of document.querySelectorAll("[data-chart]:not([hidden])"))
          if (!div.querySelector(div.dataset.chart.startsWith("map") ? ".heatmaplayer image" : ".mlayer .trace path"))
            console.error("empty", div.dataset.chart, measure.value, stop);
      }
    const state = document.createElement("p");
    state.id = "walked";
    state.textContent = [...document.querySelectorAll("[data-chart]")].filter(div => div.querySelector("svg.main-svg")).length;
    document.body.append(state);
    </script></body>"""
    run = make()
    html = page(run)
    file = tmp_path / "page.html"
    file.write_text(html.replace("</body>", walk))
    seen = visit(file, tmp_path)
    assert seen.requests == []
    if make not in (not_finite, nulls):  # its last stop has nothing to draw
        assert seen.errors == []
    assert [line for line in seen.errors if '"empty' not in line] == []
    assert f'<p id="walked">{html.count("data-chart=")}</p>' in seen.dom
    drawn = Parsed(seen.dom)
    assert drawn.tags.count("script") == 4  # with the one above: none came from a name
    assert "img" not in drawn.tags
    assert all(link.startswith("https://arxiv.org") for link in drawn.links)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(dark, tmp_path):
    """Paper, text and every colour of a chart change, and only as the style says."""
    say = """<script>
    const rgb = getComputedStyle(document.body).backgroundColor;
    const charts_drawn = [...document.querySelectorAll("[data-chart]")].map(div => JSON.stringify([div.data, div.layout]));
    document.body.append("said " + JSON.stringify([rgb, charts_drawn.join("").match(/#[0-9a-f]{6}/g)]));
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(page(audited_run()).replace("</body>", say))
    paper, colours = json.loads(Parsed(visit(file, tmp_path, dark).dom).text.split("said ")[-1])
    style = DARK if dark else COLOUR
    assert paper == f"rgb({', '.join(str(int(style['paper'][i : i + 2], 16)) for i in (1, 3, 5))})"
    diverging = IN_THE_DARK.values() if dark else IN_THE_DARK.keys()
    assert {style[name] for name in ("paper", "ink", "measured", "resummed", "first")} <= set(colours) <= {*diverging}


@needs_chromium
def test_the_browser_shows_the_selected_step(tmp_path):
    select = """<script>slider.value = 1; slider.dispatchEvent(new Event("input", {bubbles: true}));</script></body>"""
    file = tmp_path / "page.html"
    file.write_text(page(audited_run()).replace("</body>", select))
    dom = visit(file, tmp_path).dom
    assert '<output id="at">5</output>' in dom
    assert '<div class="wide" data-measure="0" data-stop="1">' in dom
    assert '<div class="wide" data-measure="0" data-stop="2" hidden="">' in dom
    assert '<tr data-row="1" class="selected">' in dom


@needs_chromium
def test_the_browser_takes_names_literally(tmp_path):
    show = """<script>
    document.body.append(document.querySelector("[data-chart=tensors] .ytick text").textContent);
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(page(hostile()).replace("</body>", show))
    assert Parsed(visit(file, tmp_path).dom).text.rstrip().endswith(f"0.weight{HOSTILE[:13]}…{HOSTILE[-18:]}")


@needs_chromium
def test_the_browser_says_what_the_mouse_is_on(tmp_path):
    """The cell at beta_1 = 0.5, beta_2 = 0.99, where the axes say that it is."""
    point = """<script>
    const map = document.querySelector("[data-chart='map measured']"), {xaxis, yaxis} = map._fullLayout;
    const area = map.querySelector(".nsewdrag"), box = area.getBoundingClientRect();
    const at = {clientX: box.left + xaxis.c2p(Math.log10(2)), clientY: box.top + yaxis.c2p(2), bubbles: true};
    for (const kind of ["mouseover", "mousemove"]) area.dispatchEvent(new MouseEvent(kind, at));
    setTimeout(() => document.body.append("hover " + map.querySelector(".hoverlayer").textContent), 500);
    </script></body>"""
    run = audited_run()
    file = tmp_path / "page.html"
    file.write_text(page(run).replace("</body>", point))
    said = Parsed(visit(file, tmp_path).dom).text.split("hover ")[-1].replace("\N{MINUS SIGN}", "-")
    assert said.startswith("β₁ 0.5, β₂ 0.99")
    change = next(m["change"] for m in run["stops"][-1]["maps"] if m["kind"] == "measured")[1][2]
    assert float(said.removeprefix("β₁ 0.5, β₂ 0.99").split("%")[0]) / 100 == pytest.approx(change, rel=0.06)  # two digits


@needs_chromium
def test_the_browser_check_sees_requests_and_errors(tmp_path):
    file = tmp_path / "bad.html"
    script = 'fetch("http://127.0.0.1:9/data"); new WebSocket("ws://127.0.0.1:9/talk"); console.error("wrong"); missing()'
    file.write_text(f'<img src="http://127.0.0.1:9/picture"><script>{script}</script>')
    seen = visit(file, tmp_path)
    assert seen.requests == ["http://127.0.0.1:9/data", "http://127.0.0.1:9/picture", "ws://127.0.0.1:9/talk"]
    assert any("wrong" in line for line in seen.errors)
    assert any("missing" in line for line in seen.errors)
