"""The stages of the large corpus, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from unimoer.benchmarks import scale
from unimoer.benchmarks.scale import STAGES, bench_scale, write_corpus
from unimoer.data.corpus import open_corpus
from unimoer.errors import UserError


@pytest.mark.slow
def test_every_stage_is_measured_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in tiny.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()
    line = bench_scale(
        Console(width=200), passages=2000, queries=50, encode=300, base="random", folder=tmp_path / "work"
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line
    amounts = [line["stages"][stage]["amount"] for stage in STAGES]
    assert amounts == [2000, 2000, 2000, 50, 300, 50]
    for stage in STAGES:
        found = line["stages"][stage]
        assert found["seconds"] > 0
        assert 20 * 2**20 < found["own"] <= found["peak"] < 4 * 2**30
    assert line["stages"]["vectors.npy"]["bytes"] == 300 * 32 * 4 + 128
    assert list((tmp_path / "work").iterdir()) == []


def test_a_stage_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tiny.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scale, "STAGES", {"encode": scale.STAGES["encode"]})
    with pytest.raises(UserError, match="the process that should encode failed"):
        bench_scale(Console(), passages=1000, queries=1, encode=1, base=str(tmp_path / "absent"))


def test_words_follow_zipf(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 1000)
    words = [word for document in open_corpus(tmp_path / "corpus.jsonl").values() for word in document.text.split()]
    assert 50 < len(words) / 1000 < 60
    # 1/1 and 1/2 of a harmonic sum of 14.4.
    assert words.count("the") / len(words) == pytest.approx(1 / 14.4, rel=0.1)
    assert words.count("of") / len(words) == pytest.approx(0.5 / 14.4, rel=0.1)
