"""BEIR folders as people and their tools write them: every variant reads as the same data set, without a warning."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from unimoer.data import check, load_dataset
from unimoer.data.beir import write_beir
from unimoer.data.lines import read_lines
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset

# Ids are numbers in text, so that the variants with numbers are the same data set.
DATASET = RetrievalDataset(
    "numbers",
    {
        "1": Document("red apple", "Apple"),
        "2": Document("yellow\u2028banana"),
        "3": Document("", "empty"),
        "4": Document("plain"),
    },
    {"7": "apple", "8": "banana"},
    {"train": {"7": {"1": 2, "2": 0, "3": -1}}, "test": {"8": {"2": 1}}},
)
TRAIN = [("7", "1", "2"), ("7", "2", "0"), ("7", "3", "-1")]


def table(rows: Iterable[Iterable[str]], separator: str = "\t") -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def train(content: str | bytes, name: str = "train.tsv") -> Callable[[Path], None]:
    """Replaces the training judgements."""

    def change(folder: Path) -> None:
        (folder / "qrels" / "train.tsv").unlink()
        (folder / "qrels" / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def records(name: str, edit: Callable[[dict[str, object]], dict[str, object]]) -> Callable[[Path], None]:
    """Rewrites the rows of a JSONL file."""

    def change(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / name).read_text().split("\n") if line]
        (folder / name).write_text("".join(json.dumps(edit(row)) + "\n" for row in rows))

    return change


def both(edit: Callable[[dict[str, object]], dict[str, object]]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        records("corpus.jsonl", edit)(folder)
        records("queries.jsonl", edit)(folder)

    return change


def beside(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def rename(row: dict[str, object]) -> dict[str, object]:
    return {"id" if key == "_id" else key: value for key, value in row.items()}


def without_empty_title(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if value or key == "text"}


def quoted(*values: str) -> list[str]:
    return [f'"{value}"' for value in values]


TREC = [(query, "0", document, grade) for query, document, grade in TRAIN]
HEADER = ("query-id", "corpus-id", "score")

VARIANTS: dict[str, Callable[[Path], None]] = {
    "ids that are numbers": both(lambda row: row | {"_id": int(str(row["_id"]))}),
    "ids that are floats": both(lambda row: row | {"_id": float(str(row["_id"]))}),
    "id instead of _id": both(rename),
    "a field id beside _id": both(lambda row: row | {"id": "other"}),
    "extra fields": both(lambda row: row | {"metadata": {"url": "x"}, "n": 3}),
    "titles that are null": records("corpus.jsonl", lambda row: row | {"title": row["title"] or None}),
    "titles that are NaN": records("corpus.jsonl", lambda row: row | {"title": row["title"] or float("nan")}),
    "titles left out": records("corpus.jsonl", without_empty_title),
    "no header": train(table(TRAIN)),
    "grades with .0": train(table([HEADER, *((q, d, g + ".0") for q, d, g in TRAIN)])),
    "grades as numpy writes them": train(table((q, d, f"{float(g):.18e}") for q, d, g in TRAIN)),
    "grades with a plus or blanks": train("7\t1\t+2\n7\t2\t 0\n7\t3\t-1 \n"),
    "ids with .0": train(table([HEADER, *((q + ".0", d + ".0", g) for q, d, g in TRAIN)])),
    "everything quoted": train(table(quoted(*row) for row in [HEADER, *TRAIN])),
    "ids quoted": train(table([quoted(*HEADER), *((*quoted(q, d), g) for q, d, g in TRAIN)])),
    "quoted floats": train(table(quoted(q + ".0", d + ".0", g + ".0") for q, d, g in TRAIN)),
    "header with underscores": train(table([("query_id", "corpus_id", "relevance"), *TRAIN])),
    "header in capitals": train(table([("Query-ID", "Corpus-ID", "Score"), *TRAIN])),
    "header of short names": train(table([("qid", "pid", "label"), *TRAIN])),
    "header of ir_datasets": train(table([("query_id", "doc_id", "relevance", "iter"), *((*r, "0") for r in TRAIN)])),
    "header of words of its own": train(table([("left", "right", "score"), *TRAIN])),
    "header behind #": train(table([("# query-id", "corpus-id", "score"), *TRAIN])),
    "columns in another order": train(table([("score", "corpus-id", "query-id"), *((g, d, q) for q, d, g in TRAIN)])),
    "a column of remarks": train(table([(*HEADER, "remark"), *((*row, "quite sure") for row in TRAIN)])),
    "an index without a name": train(table([("", *HEADER), *((str(n), *row) for n, row in enumerate(TRAIN))])),
    "an index with a name": train(table([("Unnamed: 0", *HEADER), *((str(n), *row) for n, row in enumerate(TRAIN))])),
    "row names of R": train(table([quoted(*HEADER), *(quoted(str(n), *row) for n, row in enumerate(TRAIN, 1))])),
    "blanks between three columns": train(table([HEADER, *TRAIN], " ")),
    "TREC with blanks": train(table(TREC, " ")),
    "TREC with tabs": train(table(TREC)),
    "TREC with runs of blanks and tabs": train("7 0\t1   2\n7  Q0 2\t0\n 7 0 3 -1 \n"),
    "TREC with a header": train(table([("topic", "iter", "docno", "rel"), *TREC])),
    "TREC, .qrels": train(table(TREC, " "), "train.qrels"),
    "TREC, .txt": train(table(TREC, " "), "train.txt"),
    "TREC, .qrels.gz": train(gzip.compress(table(TREC, " ").encode()), "train.qrels.gz"),
    "three columns, .txt.gz": train(gzip.compress(table([HEADER, *TRAIN]).encode()), "train.txt.gz"),
    "byte-order mark": train(b"\xef\xbb\xbf" + table(TRAIN).encode()),
    "byte-order mark and header": train(b"\xef\xbb\xbf" + table([HEADER, *TRAIN]).encode()),
    "CRLF": train(table([HEADER, *TRAIN]).replace("\n", "\r\n")),
    "CRLF and TREC": train(table(TREC, " ").replace("\n", "\r\n")),
    "blank lines": train("\n" + table([HEADER, *TRAIN]).replace("\n", "\n\n \n")),
    "no line end at the end": train(table(TRAIN).rstrip("\n")),
    "tabs at the ends of lines": train(table([HEADER, *TRAIN]).replace("\n", "\t\n")),
    "a file of macOS beside": beside("qrels/._train.tsv", b"\x00\x05\x16\x07\x00"),
    "a README beside": beside("qrels/README.txt", b"How these were made.\n"),
    "notes beside": beside("qrels/how we judged.txt", b"By hand.\n"),
}  # fmt: skip


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_variant_reads_as_the_same_data(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    change(folder)
    loaded = load_dataset(folder, strict=True)
    assert loaded == DATASET
    assert list(loaded.qrels) == ["train", "test"]
    assert check(folder, strict=True).problems == []


def test_ids_are_taken_as_written_where_that_is_an_id(tmp_path: Path) -> None:
    """Quotes and `.0` are a tool's only where the id does not exist with them."""
    corpus = {key: Document(key) for key in ("1", "1.0", '"1"', '"')}
    dataset = RetrievalDataset("x", corpus, {"q": "text"}, {"test": {"q": {'"1"': 1, "1.0": 2, "1": 3, '"': 4}}})
    write_beir(dataset, tmp_path / "x")
    assert load_dataset(tmp_path / "x", strict=True) == dataset


def test_ids_in_text_with_point_zero_match_whole_judgements(tmp_path: Path) -> None:
    write_beir(
        RetrievalDataset("x", {"1.0": Document("a")}, {"7.0": "q"}, {"test": {"7.0": {"1.0": 1}}}), tmp_path / "x"
    )
    (tmp_path / "x" / "qrels" / "test.tsv").write_text("7 0 1 1\n")
    assert load_dataset(tmp_path / "x", strict=True).qrels == {"test": {"7.0": {"1.0": 1}}}


def test_only_a_train_split_and_only_text_files(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    for path in (folder / "qrels").iterdir():
        path.unlink()
    (folder / "qrels" / "LICENSE.txt").write_text("free\n")
    (folder / "qrels" / "marco.judged.txt").write_text(table(TREC, " "))
    loaded = load_dataset(folder, strict=True)
    assert loaded.qrels == {"marco.judged": DATASET.qrels["train"]}


def test_a_number_and_its_digits_are_one_id(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": 1, "text": "again"}\n{"_id": 9007199254740993.0, "text": "cannot be told"}\n')
    assert [problem.split("corpus.jsonl:")[1] for problem in check(folder).problems] == [
        "5: duplicate document id '1'",
        "6: field '_id' must be a string or a whole number, found 9007199254740992.0",
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [("7\t1\t0.5", "'0.5'"), ("7\t1\t", None), ("7 0 1 high", "'high'"), ('7\t1\t"0.5"', "'\"0.5\"'")],
)
def test_a_broken_grade_is_one_line_whatever_the_form(tmp_path: Path, line: str, found: str | None) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    trec = line.startswith("7 ")
    (folder / "qrels" / "train.tsv").write_text((table(TREC, " ") if trec else table([HEADER, *TRAIN])) + line + "\n")
    [problem] = check(folder).problems
    row = 4 if trec else 5
    expected = f"the grade must be a whole number, found {found}" if found else "has 2 fields; 3 are needed"
    assert problem.startswith(f"{folder}/qrels/train.tsv:{row}: {expected}")


@pytest.mark.parametrize(
    ("before", "problem"),
    [
        ("judged by hand, twice\n", "has 4 fields; 3 are needed: query id, document id, grade, or the 4 of TREC"),
        ("judged by hand\n", "the grade must be a whole number, found 'hand'"),
        ("7\t1\n", "has 2 fields; 3 are needed: query id, document id, grade, or the 4 of TREC"),
        ("7 0 1 2 0.3 run\n", "has 6 fields; 3 are needed: query id, document id, grade, or the 4 of TREC"),
    ],
)
@pytest.mark.parametrize("rows", [[HEADER, *TRAIN], TRAIN, TREC], ids=["header", "no header", "TREC"])
def test_a_strange_first_line_is_one_line(
    tmp_path: Path, before: str, problem: str, rows: list[tuple[str, ...]]
) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    (folder / "qrels" / "train.tsv").write_text(before + table(rows))
    checked = check(folder)
    assert checked.problems == [f"{folder}/qrels/train.tsv:1: {problem}"]
    assert checked.dataset is not None
    assert checked.dataset.qrels == DATASET.qrels


@pytest.mark.parametrize("line", ["7,1,2", "7 0 1 2 0.3 run", '{"query-id": 7, "corpus-id": 1, "score": 2}', "\x00"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    (folder / "qrels" / "train.tsv").write_text(f"{line}\n" * 50)
    [problem] = check(folder).problems
    assert problem.startswith(f"{folder}/qrels/train.tsv:1: has ")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[\n{"_id": 1, "text": "x"},\n{"_id": 2, "text": "y"}\n]\n', ": is one JSON document; each line must be"),
        ('\ufeff{\n "_id": 1,\n "text": "x"\n}\n', ": is one JSON document; each line must be a JSON object"),
        ("_id,title,text\n1,a,x\n2,b,y\n3,c,z\n", ":1: is not valid JSON: Expecting value"),
        ("1\n2\n3\n4\n", ":1: must be a JSON object, found int"),
    ],
)
def test_texts_of_another_kind_are_one_line(tmp_path: Path, name: str, content: str, problem: str) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    (folder / name).write_text(content)
    [found] = check(folder).problems
    assert found.startswith(f"{folder}/{name}{problem}")
    with pytest.raises(UserError, match=re.escape(found)):
        load_dataset(folder)


def test_two_broken_lines_at_the_start_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    rows = (folder / "corpus.jsonl").read_bytes().split(b"\n")
    (folder / "corpus.jsonl").write_bytes(b"\n".join([b'{"_id": "1"', b'{"_id": "2"', *rows[2:]]))
    checked = check(folder)
    [problem] = checked.problems
    assert problem.split("numbers/")[1].startswith("corpus.jsonl:1: ") and problem.endswith("(2 such lines)")
    assert checked.dataset is not None
    assert checked.dataset.warnings == ()


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_the_id_that_a_duplicate_should_have_had_is_not_told_after_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    for key in ("2", "8"):
        content = (folder / name).read_text()
        (folder / name).write_text(content.replace(f'"_id": "{key}"', f'"_id": "{int(key) - 1}"'))
    [problem] = check(folder).problems
    assert ":2: duplicate " in problem
    assert problem.startswith(f"{folder}/{name}")


def test_ids_that_lost_their_zeros_are_one_warning(tmp_path: Path) -> None:
    """Which query `007` was is not known, so nothing is said of a query without judgements."""
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    (folder / "qrels" / "train.tsv").write_text("007\t1\t1\n")
    checked = check(folder)
    assert checked.problems == []
    assert checked.dataset is not None
    assert len(checked.dataset.warnings) == 1
    assert len(check(folder, strict=True).problems) == 1


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    (folder / "qrels" / "dev.tsv").mkdir()
    assert load_dataset(folder) == DATASET
    with pytest.raises(UserError, match=r"dev\.tsv: cannot be read: Is a directory"):
        list(read_lines(folder / "qrels" / "dev.tsv"))


def test_a_broken_grade_in_the_first_row_of_trecs_form_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    for path in (folder / "qrels").iterdir():
        path.write_text("1 0 1 many\n" + "".join(f"{n} 0 {n} 1\n" for n in range(1, 3)))
    assert any(
        problem.endswith(":1: the grade must be a whole number, found 'many'") for problem in check(folder).problems
    )


def test_validation_is_dev(tmp_path: Path) -> None:
    """As in Hugging Face sets; a file that has the usual name comes first."""
    folder = tmp_path / "numbers"
    write_beir(DATASET, folder)
    first = next(path for path in (folder / "qrels").iterdir())
    first.rename(folder / "qrels" / "validation.tsv")
    assert "dev" in load_dataset(folder).qrels
