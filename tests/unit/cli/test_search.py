"""`unimoer index` and `unimoer search`, as a user types them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from unimoer.model.checkpoint import save_model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """On the CPU, in a narrow window."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: call(*arguments, "--device", "cpu")


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    save_model(tiny.build(base, noise=0.3), tmp_path / "model")
    return tmp_path / "model"


def test_from_files_to_hits_and_back(call: Call, checkpoint: Path, data: dict[str, Path], tmp_path: Path) -> None:
    code, out, _ = call("index", "mine", data["kitchen"], "--model", "model")
    assert (code, out.splitlines()[-1]) == (0, "30 added; 30 documents in mine (float16 vectors, exact search)")
    (tmp_path / "more.jsonl").write_text('{"id": "x", "text": "A purple elephant [bold]."}\n')
    assert "1 added; 31 documents in mine" in call("index", "mine", "more.jsonl")[1]
    assert "31 unchanged; 31 documents in mine" in call("index", "mine", data["kitchen"], "more.jsonl")[1]
    code, out, err = call("search", "mine", "purple elephant", "-k", "3", "--retrieve", "bm25")
    assert (code, err) == (0, "")
    assert "A purple elephant [bold]." in out and out.splitlines()[-1].startswith("bm25 ")
    code, out, _ = call("search", "mine", "red kettle", "-k", "4", "--rerank", "3")
    table = out.splitlines()
    assert len(table) == 6 and "retrieval" in table[0] and "reranking" in table[0]
    assert all(len(line) <= 80 and "…" not in line[:24] for line in table[:5])
    assert "1 deleted; 30 documents in mine" in call("index", "mine", "--delete", "x", "--delete", "unknown")[1]
    assert "1 added, 30 deleted; 1 documents in mine" in call("index", "mine", "more.jsonl", "--sync")[1]
    assert "nothing found" in call("search", "mine", "kettle", "--retrieve", "bm25")[1]


def test_smaller_vectors_and_a_faster_search(
    call: Call, checkpoint: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    out = call("index", "mine", data["kitchen"], "--model", "model", "--vectors", "int8", "--ann", "ivf")[1]
    assert out.splitlines()[-1] == "30 added; 30 documents in mine (int8 vectors, FAISS IVF search)"
    plain, exact = (call("search", "mine", "red kettle", "--json", *options)[1] for options in ((), ("--exact",)))
    assert [hit["id"] for hit in json.loads(plain)["hits"]] == [hit["id"] for hit in json.loads(exact)["hits"]]
    out = call("index", "mine", "--ann", "exact")[1]
    assert "nothing changed; 30 documents in mine (int8 vectors, exact search)" in out
    assert (
        "keeps its vectors as int8; make another index"
        in call("index", "mine", "--vectors", "float16", "--ann", "auto")[2]
    )


def test_queries_come_by_line_and_leave_as_json(
    call: Call, checkpoint: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    call("index", "mine", data["kitchen"], "--model", "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("red kettle\nwhite oven\n"))
    code, out, _ = call("search", "mine", "--json", "-k", "2", "--rerank", "2", "--rrf")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["query"] for one in found] == ["red kettle", "white oven"]
    assert all(len(one["hits"]) == 2 for one in found)
    assert found[0]["hits"][0].keys() == {"id", "score", "text", "retrieval", "reranking"}
    assert found[0]["milliseconds"].keys() == {"embed", "dense", "bm25", "rerank"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("index", "mine"), "nothing to do: name documents to add, or --delete some"),
        (("index", "mine", "--sync", "--delete", "a"), "--sync: goes with documents to add"),
        (("index", "mine", "--delete", "a"), "mine: no index here to delete from"),
        (("index", "mine", "--ann", "ivf"), "mine: no index here to change"),
        (("index", "mine", "nothing"), "nothing: no such file or folder"),
        (("index", "mine", "more.jsonl", "--model", "nobody"), "nobody: no such folder, and no released model"),
        (("search", "mine", "x"), "mine: no index here; make one with `unimoer index`"),
        (("index", "more.jsonl", "more.jsonl"), "more.jsonl: is not an index, and not empty"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], line: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"id": "x", "text": "y"}\n')
    code, _, err = call(*arguments)
    assert code == 2 and len(err.splitlines()) == 1 and line in err
    assert not (tmp_path / "mine").exists()


def test_a_broken_line_leaves_no_half_index(call: Call, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"id": "x", "text": "y"}\n{"id": "z"}\n')
    code, _, err = call("index", "mine", "more.jsonl", "--model", "model", "--split-identifiers")
    assert code == 2 and "more.jsonl:2: has no text" in err
    assert "nothing found" in call("search", "mine", "y")[1]
    code, _, err = call("search", "mine", "caf\udce9")
    assert code == 2 and err.strip() == "unimoer: the query is not UTF-8 text"
    # The index's own model, also where a setting is named again; and one that was moved.
    (tmp_path / "more.jsonl").write_text('{"id": "x", "text": "y"}\n{"id": "x", "text": "z"}\n')
    out = call("index", "mine", "more.jsonl", "--split-identifiers")[1]
    assert "1 texts have an id that comes again later" in out and "1 added; 1 documents in mine" in out
    checkpoint.rename(tmp_path / "moved")
    assert "its model cannot be loaded; say where it is (--model)" in call("search", "mine", "y")[2]
    assert "x" in call("search", "mine", "z", "--model", "moved")[1]
