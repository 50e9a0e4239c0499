"""A corpus on disk behaves as the dictionary that it stands for."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unimoer.data import corpus as module
from unimoer.data import write_beir
from unimoer.data.bm25 import BM25
from unimoer.data.corpus import DiskCorpus, open_corpus
from unimoer.errors import UserError
from unimoer.types import RetrievalDataset


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_it_equals_the_corpus_that_was_written(dataset: RetrievalDataset, tmp_path: Path) -> None:
    write_beir(dataset, tmp_path / "x")
    found = open_corpus(tmp_path / "x" / "corpus.jsonl")
    assert list(found) == list(dataset.corpus)
    assert dict(found) == dict(dataset.corpus)
    assert len(found) == len(dataset.corpus)
    assert "absent" not in found and 7 not in found
    with pytest.raises(KeyError):
        found["absent"]
    again = replace(dataset, corpus=found)
    assert again.fingerprint == dataset.fingerprint
    assert BM25.of(again).search(dataset.queries, 5) == BM25.of(dataset).search(dataset.queries, 5)
    assert dict(pickle.loads(pickle.dumps(found))) == dict(found)  # noqa: S301


def test_blank_lines_missing_titles_and_characters_of_many_bytes(tmp_path: Path) -> None:
    lines = ['{"_id": "a", "text": "é 中 🙂"}', "", "  ", '{"_id": "b", "title": null, "text": ""}']
    path = written(tmp_path / "corpus.jsonl", *lines)
    path.write_bytes(path.read_bytes() + b'{"_id": "\xc3\xa9", "title": "t", "text": "last, no line break"}')
    found = open_corpus(path)
    assert {key: (found[key].title, found[key].text) for key in found} == {
        "a": ("", "é 中 🙂"),
        "b": ("", ""),
        "é": ("t", "last, no line break"),
    }


def test_the_file_is_scanned_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "corpus.jsonl", '{"_id": "a", "text": "one"}')
    open_corpus(path)

    def forbidden(*_: object) -> None:
        raise AssertionError("scanned again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_scan", forbidden)
        assert open_corpus(path)["a"].text == "one"
    written(path, '{"_id": "a", "text": "changed"}')
    assert open_corpus(path)["a"].text == "changed"


def test_ids_of_equal_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hash", lambda key: np.uint64(len(key)))
    keys = ["aa", "b", "cc", "d", "ee", "fff"]
    path = written(tmp_path / "corpus.jsonl", *(json.dumps({"_id": key, "text": key}) for key in keys))
    found = open_corpus(path)
    assert {key: found[key].text for key in found} == {key: key for key in keys}
    assert "zz" not in found


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            ['{"_id": "a", "text": "x"}', "", '{"_id": "a", "text": "y"}'],
            r":3: duplicate document id 'a', which line 1",
        ),
        (['{"_id": "a b", "text": "x"}'], r":1: field '_id' is 'a b'"),
        (['{"_id": "a"}'], r":1: field 'text' is missing"),
        (['{"_id": "a", "text": "x"}', "{"], r":2: is not valid JSON"),
        (["[]"], r":1: must be a JSON object"),
        ([], r"the corpus is empty"),
    ],
)
def test_problems_name_the_line_and_leave_nothing_in_the_cache(
    lines: list[str], problem: str, tmp_path: Path, cache: Path
) -> None:
    path = written(tmp_path / "corpus.jsonl", *lines)
    for _ in range(2):
        with pytest.raises(UserError, match=problem):
            open_corpus(path)
    assert not list((cache / "corpora").glob("*"))


def test_missing_and_compressed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_corpus(tmp_path / "corpus.jsonl")
    with pytest.raises(UserError, match="gunzip"):
        open_corpus(tmp_path / "corpus.jsonl.gz")
    assert isinstance(open_corpus(written(tmp_path / "c.jsonl", '{"_id": "a", "text": "x"}')), DiskCorpus)
