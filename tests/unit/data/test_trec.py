"""Run files: a round trip without loss, and one line for what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimoer.data.trec import read_trec, write_trec
from unimoer.errors import UserError

DOCUMENTS = [f"d{number}" for number in range(30)] + ["é", "Z", "_"]
queries = st.sampled_from([f"q{number}" for number in range(5)])


@settings(max_examples=50, deadline=None)
@given(run=st.dictionaries(queries, st.dictionaries(st.sampled_from(DOCUMENTS), st.floats(-1e9, 1e9), min_size=1)))
def test_trec_round_trip(tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]]) -> None:
    path = tmp_path_factory.mktemp("trec") / "folder" / "run.trec"
    write_trec(run, path, "joint single")
    assert read_trec(path) == run
    ranks = [line.split() for line in path.read_text("utf-8").splitlines()]
    assert all(fields[1] == "Q0" and fields[5] == "joint-single" for fields in ranks)
    assert sum(fields[3] == "1" for fields in ranks) == len(run)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 0.5 t\nq Q0 b 2\n", r":2: expected .* found 4 fields"),
        ("q Q0 a 1 high t\n", r":1: the score 'high'"),
        ("q Q0 a 1 nan t\n", r":1: the score 'nan'"),
        ("q Q0 a 1 0.5 t\n\nq Q0 a 2 0.4 t\n", r":3: document 'a' is listed twice"),
    ],
)
def test_broken_run_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        read_trec(path)


def test_a_byte_order_mark_is_no_part_of_the_first_query(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_bytes(b"\xef\xbb\xbfq Q0 a 1 0.5 t\nq Q0 b 2 0.4 t\n")
    assert read_trec(tmp_path / "run.trec") == {"q": {"a": 0.5, "b": 0.4}}


def test_run_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run file"):
        read_trec(tmp_path / "absent.trec")
    with pytest.raises(UserError, match="a folder; name one run file in it"):
        read_trec(tmp_path)
    with pytest.raises(UserError, match="white space"):
        write_trec({"q": {"a b": 1.0}}, tmp_path / "run.trec", "t")
    assert not list(tmp_path.iterdir())
