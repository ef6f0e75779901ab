"""`memoryless atlas` as a user meets it, in-process."""

import json
from pathlib import Path

import pytest

from memoryless.cli.atlas import Atlas
from memoryless.cli.main import main
from memoryless.errors import BadInput
from memoryless.experiments.atlas import pool, subjects
from memoryless.experiments.atlas.pool import Store
from tests.experiments.test_atlas import bare


def test_command_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    store, html, document = (tmp_path / name for name in ("a.jsonl", "a.html", "a.md"))
    Store(store).append(bare("SGD"))
    Atlas(("sgd", "SparseAdam"), "torch", str(store), str(html), str(document), json=True).run()
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == ["SGD", "SparseAdam"]
    assert found[0] == bare("SGD")
    monkeypatch.setattr(pool, "run", lambda tasks, jobs, limit: iter([bare(name) for _, name in tasks]))
    Atlas(("sgd", "SparseAdam"), "torch", str(store), str(html), str(document), json=True).run()
    assert json.loads(capsys.readouterr().out) == found
    assert html.exists()
    assert document.read_text().startswith("# Atlas")


def test_one_process_works_on_a_store(tmp_path):
    store = tmp_path / "a.jsonl"
    with pool.sole(store), pytest.raises(BadInput, match=r"another process is writing .*a\.jsonl; wait"):
        Atlas(("sgd",), "torch", str(store)).run()
    with pool.sole(store):
        pass
    assert not [*tmp_path.iterdir()]


def test_ctrl_c_says_what_is_kept(tmp_path, capsys, monkeypatch):
    def interrupted(tasks, jobs, limit):
        yield bare("SGD")
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["atlas", "--only", "SGD", "Adam", "--library", "torch", "--store", "a.jsonl"])
    assert caught.value.code == 130
    kept = "1 of 2 rows are in a.jsonl; the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == f"memoryless: interrupted; {kept}"
    assert [*Store(tmp_path / "a.jsonl").rows] == [("torch", "SGD")]


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(subjects.importlib.util, "find_spec", lambda name: True if name == "torch" else None)
    monkeypatch.setattr(pool, "run", lambda tasks, jobs, limit: iter([bare(name) for _, name in tasks]))
    Atlas(json=True).run()
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == len(subjects.names("torch"))
    assert "without pytorch_optimizer and heavyball, which pip install 'memoryless[atlas]' brings" in err
    with pytest.raises(ValueError, match="heavyball is not installed"):
        Atlas(library="heavyball").run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ("Adamm",), "library": "torch"}, "no optimizer is called 'Adamm' in torch"),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"limit": 0.0}, "--limit must be positive"),
        ({"limit": float("nan")}, "--limit must be positive"),
        ({"store": "nowhere/a.jsonl"}, "no folder nowhere"),
        ({"store": "docs", "library": "torch"}, "docs cannot be read"),
        ({"html": "nowhere/a.html"}, "no folder nowhere"),
        ({"markdown": "README.md"}, "was not written by memoryless"),
        ({"store": "README.md", "library": "torch"}, "is no row of an atlas"),
    ],
)
def test_bad_input(options, message, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ValueError, match=message):
        Atlas(**options).run()
