"""Reading and writing BEIR folders: the round trip, and one clear line for every kind of broken file."""

from __future__ import annotations

import gzip
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimoer.data import check, load_dataset, write_beir
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = texts.filter(lambda text: text.split() == [text])


@st.composite
def datasets(draw: st.DrawFn) -> RetrievalDataset:
    corpus = draw(st.dictionaries(ids, st.builds(Document, texts, texts), min_size=1, max_size=6))
    queries = draw(st.dictionaries(ids, texts.filter(str.strip), min_size=1, max_size=4))
    grades = st.dictionaries(st.sampled_from(sorted(corpus)), st.integers(-1, 3), min_size=1)
    splits = st.dictionaries(st.sampled_from(sorted(queries)), grades, min_size=1)
    qrels = draw(st.dictionaries(st.sampled_from(["train", "dev", "test", "extra"]), splits))
    first = {min(queries): {min(corpus): 1}}
    families = draw(st.dictionaries(st.sampled_from(sorted(corpus)), texts))
    return RetrievalDataset("random", corpus, queries, {**qrels, "train": first}, families=families)


@given(datasets())
@settings(max_examples=60, deadline=None)
def test_round_trip(dataset: RetrievalDataset) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "random"
        write_beir(dataset, folder)
        loaded = load_dataset(folder)
    assert loaded == dataset
    assert loaded.fingerprint == dataset.fingerprint
    assert list(loaded.corpus) == list(dataset.corpus)


def test_gzip_and_headerless_qrels_read_the_same(dataset: RetrievalDataset, folder: Path) -> None:
    for path in [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "train.tsv"]:
        content = path.read_bytes()
        if path.suffix == ".tsv":
            content = content.split(b"\n", 1)[1]
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        path.unlink()
    assert load_dataset(str(folder)) == dataset


def test_windows_line_ends_blank_lines_and_byte_order_marks_are_read(dataset: RetrievalDataset, folder: Path) -> None:
    for path in [folder / "corpus.jsonl", folder / "qrels" / "test.tsv"]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert load_dataset(folder) == dataset


def test_title_may_be_missing_or_null(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d8", "text": "no title"}\n{"_id": "d9", "title": null, "text": "null title"}\n')
    corpus = load_dataset(folder).corpus
    assert corpus["d8"] == Document("no title")
    assert corpus["d9"] == Document("null title")


def test_write_refuses_a_folder_with_content(dataset: RetrievalDataset, folder: Path) -> None:
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        write_beir(dataset, folder)


def append(name: str, line: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(line if isinstance(line, bytes) else line.encode() + b"\n")

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


BROKEN = [
    (append("corpus.jsonl", '{"_id": "d6", "text": '), "corpus.jsonl:6: is not valid JSON: "),
    (append("corpus.jsonl", b'{"_id": "\xff"}\n'), "corpus.jsonl:6: is not valid UTF-8"),
    (append("corpus.jsonl", "[1]"), "corpus.jsonl:6: must be a JSON object, found list"),
    (append("corpus.jsonl", '{"text": "x"}'), "corpus.jsonl:6: field '_id' is missing"),
    (append("corpus.jsonl", '{"_id": "d6"}'), "corpus.jsonl:6: field 'text' is missing"),
    (
        append("corpus.jsonl", '{"_id": null, "text": "x"}'),
        "field '_id' must be a string or a whole number, found None",
    ),
    (
        append("corpus.jsonl", '{"_id": true, "text": "x"}'),
        "field '_id' must be a string or a whole number, found bool",
    ),
    (append("corpus.jsonl", '{"_id": 6.5, "text": "x"}'), "field '_id' must be a string or a whole number, found 6.5"),
    (append("corpus.jsonl", '{"id": [6], "text": "x"}'), "field 'id' must be a string or a whole number, found list"),
    (append("corpus.jsonl", '{"_id": "d6", "text": null}'), "corpus.jsonl:6: field 'text' must be a string, found"),
    (append("corpus.jsonl", '{"_id": "d6", "title": 1, "text": ""}'), "corpus.jsonl:6: field 'title' must be a string"),
    (append("corpus.jsonl", '{"_id": "d 6", "text": "x"}'), "an id must not be empty or hold white space"),
    (append("corpus.jsonl", '{"_id": "d6", "text": "\\ud800"}'), "corpus.jsonl:6: field 'text' holds a character"),
    (append("corpus.jsonl", '{"_id": "d1", "text": "x"}'), "corpus.jsonl:6: duplicate document id 'd1'"),
    (append("queries.jsonl", '{"_id": "q1", "text": "x"}'), "queries.jsonl:4: duplicate query id 'q1'"),
    (append("queries.jsonl", '{"_id": "q4", "text": " "}'), "queries.jsonl:4: the text of query 'q4' is empty"),
    (append("qrels/test.tsv", "q3\td3"), "test.tsv:3: has 2 fields; 3 are needed"),
    (append("qrels/test.tsv", "q3\t\t1"), "test.tsv:3: has 2 fields; 3 are needed"),
    (append("qrels/test.tsv", "q3\td1\t1\tx"), "test.tsv:3: has 4 fields; 3 are needed"),
    *(
        (append("qrels/test.tsv", f"q3\td1\t{grade}"), f"test.tsv:3: the grade must be a whole number, found '{grade}'")
        for grade in ("yes", "0.5", "nan", "inf", "1e400", "1_0", "0x1", "True", "١")
    ),
    (append("qrels/test.tsv", b"\xff\t\t\n"), "test.tsv:3: is not valid UTF-8"),
    (write("qrels/test.tsv", "q3\td3\tx\n"), "test.tsv:1: the grade must be a whole number, found 'x'"),
    (write("qrels/test.tsv", "q3,d3,1\nq3,d1,1\n"), "test.tsv:1: has 1 field; 3 are needed"),
    (write("qrels/test.tsv", "q3 0 d3 0 1 tag\nq3 0 d1 1 1 tag\n"), "test.tsv:1: has 6 fields; 3 are needed"),
    (write("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq3\td3\t0.5\n"), "test.tsv:2: the grade must be a whole"),
    (write("corpus.jsonl", "{}".encode("utf-16")), "corpus.jsonl: is UTF-16; save it as UTF-8"),
    (write("families.jsonl", '{"_id": "d9", "family": "x"}\n'), "families.jsonl:1: document 'd9' has a family but is"),
    (write("families.jsonl", '{"_id": "d1"}\n'), "families.jsonl:1: field 'family' is missing"),
    (remove("corpus.jsonl"), "holds no corpus.jsonl or corpus.jsonl.gz"),
    (remove("queries.jsonl"), "holds no queries.jsonl or queries.jsonl.gz"),
    (remove("qrels/train.tsv", "qrels/test.tsv"), "holds no qrels/*.tsv"),
    (write("corpus.jsonl", ""), "fruit: the corpus is empty"),
    (write("queries.jsonl", "\n"), "fruit: there are no queries"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_folder_gives_one_line_with_file_and_line(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(UserError) as caught:
        load_dataset(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    checked = check(folder)
    assert checked.problems == [str(caught.value)]
    assert checked.dataset is None or checked.dataset.warnings == ()


def replace_first(name: str, row: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rest = (folder / name).read_bytes().split(b"\n", 1)[1]
        (folder / name).write_bytes(row + b"\n" + rest)

    return change


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("corpus.jsonl", b'{"_id": "d1", "text": "cut o'),
        ("corpus.jsonl", b'{"_id": "d1", "text": "\xff"}'),
        ("corpus.jsonl", b'{"_id": "d1", "title": "no text"}'),
        ("corpus.jsonl", b'{"_id": "d1", "text": "", "title": 3}'),
        ("corpus.jsonl", b'{"text": "no id"}'),
        ("corpus.jsonl", b'{"_id": "d 1", "text": "white space"}'),
        ("corpus.jsonl", b'["d1"]'),
        ("corpus.jsonl", b"oops"),
        ("queries.jsonl", b'{"_id": "q1", "text": null}'),
        ("queries.jsonl", b'{"_id": "q1", "text": " "}'),
        ("queries.jsonl", b'{"_id": "q1", "text": '),
        ("queries.jsonl", b'{"text": "no id"}'),
        ("queries.jsonl", b"oops"),
        ("qrels/train.tsv", b"q1\td1\tx"),
        ("qrels/train.tsv", b"q1\td2"),
        ("qrels/train.tsv", b"\xff\td1\t1"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_what_follows_from_a_fault_is_not_told_after_it(folder: Path, name: str, row: bytes, strict: bool) -> None:
    """The row that is broken is one that judgements name, or the one judgement of its query."""
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\nq2\td2\t1\n")
    replace_first(name, row)(folder)
    checked = check(folder, strict=strict)
    [problem] = checked.problems
    assert problem.startswith(f"{folder}/{name}:1: ")
    assert checked.dataset is not None
    assert checked.dataset.warnings == ()


def test_a_data_set_without_any_relevant_document_is_refused(folder: Path) -> None:
    write("qrels/train.tsv", "q1\td1\t0\n")(folder)
    write("qrels/test.tsv", "q3\td3\t0\n")(folder)
    with pytest.raises(UserError, match="fruit: no query has a relevant document"):
        load_dataset(folder)
    assert check(folder).problems == [f"{folder}: no query has a relevant document"]
    write("qrels/test.tsv", "q3\tD3\t1\nq3\tD4\t1\n")(folder)
    write("qrels/train.tsv", "q1\tD3\t1\n")(folder)
    checked = check(folder)
    assert checked.dataset is not None
    assert checked.dataset.warnings == ()
    assert checked.problems == [
        f"{folder}: no query has a relevant document; "
        f"{folder}/qrels/test.tsv:1: document 'D3' is judged but is not in the corpus (left out; 2 such judgements); "
        f"{folder}/qrels/train.tsv:1: document 'D3' is judged but is not in the corpus (left out)"
    ]


LAPSES = [
    ("q3\td9\t1", "document 'd9' is judged but is not in the corpus", "left out"),
    ("q9\td1\t1", "query 'q9' is judged but is not among the queries", "left out"),
    ("q9\td9\t1", "query 'q9' is judged but is not among the queries", "left out"),
    ("q3\td3\t1", "document 'd3' is judged 1 for query 'q3', as before", "kept once"),
    ("q3\td3\t0", "document 'd3' is judged 0 for query 'q3', and 1 before", "the highest grade is kept"),
]


@pytest.mark.parametrize(("line", "text", "remedy"), LAPSES)
def test_a_lapse_is_counted_by_default_and_refused_when_strict(
    dataset: RetrievalDataset, folder: Path, line: str, text: str, remedy: str
) -> None:
    append("qrels/test.tsv", line)(folder)
    where = f"{folder}/qrels/test.tsv:3: {text}"
    loaded = load_dataset(folder)
    assert loaded == dataset
    assert loaded.fingerprint == dataset.fingerprint
    assert loaded.warnings == (f"{where} ({remedy})",)
    assert pickle.loads(pickle.dumps(loaded)).warnings == loaded.warnings  # noqa: S301
    assert check(folder).problems == []
    with pytest.raises(UserError) as caught:
        load_dataset(folder, strict=True)
    assert str(caught.value) == where
    assert check(folder, strict=True).problems == [where]

    append("qrels/test.tsv", line)(folder)
    assert load_dataset(folder).warnings == (f"{where} ({remedy}; 2 such judgements)",)
    assert check(folder, strict=True).problems == [f"{where} (2 such lines)"]


def test_the_highest_of_contradictory_grades_is_kept_in_any_order(folder: Path) -> None:
    append("qrels/test.tsv", "q3\td1\t0")(folder)
    append("qrels/test.tsv", "q3\td1\t2")(folder)
    append("qrels/test.tsv", "q3\td1\t1")(folder)
    assert load_dataset(folder).qrels["test"]["q3"] == {"d3": 1, "d1": 2}


# A compressed file holds its time, so it must not name a test: two workers would name it differently.
@pytest.mark.parametrize(
    "content", [b"plain text", gzip.compress(b'{"_id": "d1"}' * 1000)[:-20]], ids=["plain text", "cut off"]
)
def test_a_broken_gzip_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz.*"):
        load_dataset(folder)


def test_check_reports_every_problem_and_still_reads_the_rest(folder: Path) -> None:
    append("corpus.jsonl", "oops")(folder)
    append("corpus.jsonl", json.dumps({"_id": "d7", "text": "kept"}))(folder)
    append("queries.jsonl", '{"_id": "q4", "text": "judged nowhere"}')(folder)
    append("queries.jsonl", '{"_id": "q5", "text": "only a negative"}')(folder)
    append("qrels/test.tsv", "q5\td1\t0")(folder)
    append("qrels/test.tsv", "q3\tgone\t1")(folder)
    append("qrels/test.tsv", "q3\tlost\t1")(folder)
    checked = check(folder)
    assert checked.dataset is not None
    assert "d7" in checked.dataset.corpus
    assert [problem.removeprefix(str(folder)) for problem in checked.problems] == [
        "/corpus.jsonl:6: is not valid JSON: Expecting value: line 1 column 1 (char 0)",
    ]
    # 'gone' may be the id of the line that could not be read; no line explains 'lost'.
    lost = f"{folder}/qrels/test.tsv:5: document 'lost' is judged but is not in the corpus (left out)"
    assert checked.dataset.warnings == (lost,)
    unused = [
        f"{folder}: query 'q5' has no relevant document in split 'test'",
        f"{folder}: query 'q4' is judged in no split",
    ]
    assert checked.warnings == [lost, *unused]
    assert check(folder, strict=True).problems[-2:] == unused


def test_a_fault_that_runs_through_a_file_is_one_line(folder: Path) -> None:
    """Fifty documents with another name for their text are one mistake; another kind beside it is another line."""
    for number in range(50):
        append("corpus.jsonl", json.dumps({"_id": f"n{number}", "contents": "a text"}))(folder)
        append("queries.jsonl", json.dumps({"_id": f"unused{number}", "text": "a text"}))(folder)
        append("qrels/test.tsv", f"q1\td1\t0.{number + 1}")(folder)
    append("corpus.jsonl", json.dumps({"_id": "t", "text": "a text", "title": 5}))(folder)
    checked = check(folder)
    assert [problem.removeprefix(str(folder)) for problem in checked.problems] == [
        "/corpus.jsonl:6: field 'text' is missing (50 such lines)",
        "/corpus.jsonl:56: field 'title' must be a string, found int",
        "/qrels/test.tsv:3: the grade must be a whole number, found '0.1' (50 such lines)",
    ]
    assert checked.warnings == [f"{folder}: query 'unused0' is judged in no split (50 such queries)"]
