"""Files as people have them, and one line for what is wrong in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from unimoer.data import write_beir
from unimoer.errors import UserError
from unimoer.search import read_documents


def lines(path: Path, *records: object) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records), "utf-8")
    return str(path)


def test_fields_as_tools_name_them(tmp_path: Path) -> None:
    records = [
        {"_id": "a", "title": "A title", "text": "one"},
        {"id": 7, "contents": "two", "url": "x"},
        "",
        {"docid": "c", "body": "three\u2028still", "title": None},
        {"doc_id": "d", "content": ""},
    ]
    found = list(read_documents(lines(tmp_path / "x.jsonl", *records)))
    assert found == [("a", "A title\none"), ("7", "two"), ("c", "three\u2028still"), ("d", "")]
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "one"}\r\n')
    assert list(read_documents(str(tmp_path / "bom.jsonl"))) == [("a", "one")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must be a JSON object, found list"),
        ({"text": "x"}, "has no id; looked for _id, id, docid, doc_id"),
        ({"id": "a"}, "has no text; looked for text, contents, content, body"),
        ({"id": None, "text": "x"}, "'id' is NoneType, no id"),
        ({"id": True, "text": "x"}, "'id' is bool, no id"),
        ({"id": "a", "text": 3}, "'text' is int, no text"),
        ({"id": "a", "text": "x", "title": 3}, "'title' is int, not text"),
        ("[" * 100_000, "is not valid JSON"),
        ({"id": "", "text": "x"}, "its id is empty"),
        ('{"id": "a", "text": "\\ud83d"}', "holds half of a surrogate pair"),
        ('{"id": "\\ud83d", "text": "x"}', "holds half of a surrogate pair"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(record: object, problem: str, tmp_path: Path) -> None:
    source = lines(tmp_path / "x.jsonl", {"id": "ok", "text": "x"}, record)
    with pytest.raises(UserError) as caught:
        list(read_documents(source))
    line = str(caught.value)
    assert line.startswith(f"{source}:2: ") and problem in line and "\n" not in line


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "notes" / "b.MD").write_text("# two")
    (tmp_path / "notes" / "c.pdf").write_bytes(b"%PDF")
    assert list(read_documents(str(tmp_path))) == [("a.txt", "one"), ("notes/b.MD", "# two")]
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"d\.txt: not UTF-8 text"):
        list(read_documents(str(tmp_path)))


def test_a_folder_in_beir_layout(tmp_path: Path) -> None:
    data = tiny.dataset("kitchen")
    write_beir(data, tmp_path / "kitchen")
    found = dict(read_documents(str(tmp_path / "kitchen")))
    assert found == {key: document.content for key, document in data.corpus.items()}


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file or folder; a \.jsonl, a folder"):
        read_documents(str(tmp_path / "nothing"))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"is one file that is not \.jsonl"):
        read_documents(str(tmp_path / "x.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.txt, \.md, \.markdown file in it"):
        list(read_documents(str(tmp_path / "empty")))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"empty\.jsonl: no document in it"):
        list(read_documents(str(tmp_path / "empty.jsonl")))
    with pytest.raises(UserError, match=r"latin\.jsonl:2: not UTF-8 text: .* at byte 24"):
        (tmp_path / "latin.jsonl").write_bytes(b'{"id": "b", "text": ""}\n{"id": "a", "text": "caf\xe9"}\n')
        list(read_documents(str(tmp_path / "latin.jsonl")))
