"""From a configuration to training examples: their negatives, their samples, and what they may not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from unimoer.config import DataConfig
from unimoer.data import write_beir
from unimoer.data.prepare import TrainingDomain, prepare
from unimoer.data.trec import write_trec
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset


def prepared(data: dict[str, Path], negatives: dict[str, Any] | None = None, **changes: Any) -> TrainingDomain:
    domain = {"source": str(data["kitchen"])} | changes
    config = DataConfig.model_validate({"domains": {"kitchen": domain}, "negatives": negatives or {}})
    return prepare(config)["kitchen"]


def test_examples_have_positives_and_negatives_that_look_alike(data: dict[str, Path]) -> None:
    domain = prepared(data, {"num_negatives": 4})
    assert len(domain.examples) == 60
    for example in domain.examples:
        assert example.domain == "kitchen"
        assert domain.dataset.queries[example.query_id] == example.query
        assert domain.dataset.qrels["train"][example.query_id].keys() == set(example.positive_ids)
        assert len(example.negative_ids) == 4
        assert not set(example.negative_ids) & set(example.positive_ids)
        title = set(domain.dataset.corpus[example.positive_ids[0]].title.split())
        assert title & set(domain.dataset.corpus[example.negative_ids[0]].title.split())


def test_samples_are_the_same_every_time(data: dict[str, Path]) -> None:
    first, second = (prepared(data, queries=10, documents=15) for _ in range(2))
    assert (len(first.examples), len(first.dataset.corpus)) == (10, 15)
    assert first.examples == second.examples
    assert first.dataset.fingerprint == second.dataset.fingerprint
    assert first.dataset.qrels.keys() == {"train"}
    for grades in first.dataset.qrels["train"].values():
        assert grades.keys() <= first.dataset.corpus.keys()


def own(folder: Path, qrels: dict[str, Any]) -> dict[str, Path]:
    corpus = {f"d{number}": Document(f"red kettle number {number}") for number in range(6)}
    queries = {query: f"red kettle {query}" for grades in qrels.values() for query in grades}
    write_beir(RetrievalDataset("own", corpus, queries, qrels), folder / "own")
    return {"kitchen": folder / "own"}


def test_a_wrong_source_names_its_field(data: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"^data\.domains\.kitchen\.source: folder 'atack' does not exist"):
        prepared(data, source="atack")


def test_what_another_split_knows_to_be_relevant_is_not_mined(tmp_path: Path) -> None:
    """The other split's judgement of the same query is gone from what training reads, and counts all the same."""
    qrels = {"train": {"q": {"d0": 1}, "r": {"d1": 1}}, "test": {"q": {"d1": 1}}}
    domain = prepared(own(tmp_path, qrels))
    [first, second] = domain.examples
    assert "d1" in domain.dataset.corpus
    assert set(first.negative_ids) == {"d2", "d3", "d4", "d5"}
    assert set(second.negative_ids) == {"d0", "d2", "d3", "d4", "d5"}


def test_what_only_a_test_asks_for_is_never_shown(tmp_path: Path) -> None:
    """Neither mined nor drawn at random: it is not in the corpus that training reads."""
    domain = prepared(
        own(tmp_path, {"train": {"q": {"d0": 1}}, "dev": {"v": {"d2": 1}}, "test": {"t": {"d1": 1, "d0": 1, "d3": 0}}})
    )
    assert domain.dataset.corpus.keys() == {"d0", "d3", "d4", "d5"}
    [example] = domain.examples
    assert set(example.negative_ids) == {"d3", "d4", "d5"}
    assert domain.held_out == 2


def test_negatives_that_the_data_brings_come_before_mined_ones(tmp_path: Path) -> None:
    data = own(tmp_path, {"train": {"q": {"d0": 1, "d5": 0, "d4": -1}}, "test": {"t": {"d1": 1}}})
    [example] = prepared(data).examples
    assert example.negative_ids[:2] == ("d5", "d4")
    assert set(example.negative_ids[2:]) == {"d2", "d3"}
    [unmined] = prepared(data, mine_negatives=False).examples
    assert unmined.negative_ids == ("d5", "d4")


def test_negatives_mined_from_a_run(tmp_path: Path) -> None:
    """In its order, without what training may not show; another run is other training data."""
    data = own(tmp_path, {"train": {"q": {"d0": 1}}, "test": {"t": {"d1": 1}}})
    ranked = {"d1": 0.9, "d5": 0.8, "d0": 0.7, "d4": 0.5, "d2": 0.1}
    write_trec({"q": ranked, "t": {"d1": 1.0}}, tmp_path / "own.trec", "engine")
    plain, domain = prepared(data), prepared(data, negatives_run=str(tmp_path / "own.trec"))
    assert domain.examples[0].negative_ids == ("d5", "d4", "d2")
    assert domain.dataset.fingerprint == plain.fingerprint != domain.fingerprint
    limit = {"strategy": "percent_pos", "percent": 0.8}
    [example] = prepared(data, limit, negatives_run=str(tmp_path / "own.trec")).examples
    assert example.negative_ids == ("d4", "d2"), "nearer than 80% of the positive's score"
    write_trec({"q": {**ranked, "d2": 0.6}}, tmp_path / "other.trec", "engine")
    assert prepared(data, negatives_run=str(tmp_path / "other.trec")).fingerprint != domain.fingerprint


def test_a_run_of_other_queries_is_no_source_of_negatives(tmp_path: Path) -> None:
    data = own(tmp_path, {"train": {"q": {"d0": 1}, "p": {"d2": 1}}, "test": {"t": {"d1": 1}}})
    write_trec({"p": {"d2": 1.0}, "t": {"d1": 1.0}}, tmp_path / "test.trec", "engine")
    wrong = r"kitchen\.negatives_run: .*test\.trec: no documents for 1 of 2 queries of split 'train', such as 'q'; rank"
    with pytest.raises(UserError, match=wrong):
        prepared(data, negatives_run=str(tmp_path / "test.trec"))
    with pytest.raises(UserError, match=r"absent\.trec: no such run file"):
        prepared(data, negatives_run=str(tmp_path / "absent.trec"))


def test_a_domain_left_out_is_not_read(data: dict[str, Path], tmp_path: Path) -> None:
    content = {"domains": {"kitchen": {"source": str(data["kitchen"])}, "garden": {"source": str(tmp_path / "absent")}}}
    assert prepare(DataConfig.model_validate({**content, "left_out": ["garden"]})).keys() == {"kitchen"}
    for left_out, message in (
        (["gardn"], "'gardn' is none of the domains; did you mean 'garden'"),
        (["kitchen", "garden"], "nothing is left"),
    ):
        with pytest.raises(ValidationError, match=message):
            DataConfig.model_validate({**content, "left_out": left_out})


def test_a_split_that_is_missing_or_empty_is_named(data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.domains\.kitchen: .* has no split 'trian'; did you mean 'train'"):
        prepared(data, split="trian")
    with pytest.raises(UserError, match=r"data\.domains\.kitchen: split 'train' of .* has no query with a positive"):
        prepared(own(tmp_path, {"train": {"q": {"d0": 0}}, "test": {"t": {"d1": 1}}}))


def test_queries_without_a_positive_are_counted(tmp_path: Path) -> None:
    domain = prepared(own(tmp_path, {"train": {"q": {"d0": 1}, "p": {"d1": 0}}}))
    assert (len(domain.examples), domain.without_positive) == (1, 1)


def test_a_cache_that_cannot_be_written_is_one_line(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"negatives: cannot be written: .*; free space, or move the cache with"):
        prepared(data)


def test_stages_have_queries_of_their_own(data: dict[str, Path]) -> None:
    """Two parts share no query, and their keys differ; each has its own negatives."""

    def of(low: float, high: float) -> TrainingDomain:
        content = {"domains": {"kitchen": {"source": str(data["kitchen"])}}, "part": [low, high]}
        return prepare(DataConfig.model_validate(content))["kitchen"]

    first, second = of(0, 0.6), of(0.6, 1)
    assert [len(domain.examples) for domain in (first, second)] == [36, 24]
    assert not {one.query_id for one in first.examples} & {one.query_id for one in second.examples}
    assert first.fingerprint != second.fingerprint
    with pytest.raises(UserError, match=r"data\.part: \[0, 0\.001\] leaves no query of data\.domains\.kitchen"):
        of(0, 0.001)
    with pytest.raises(ValidationError, match=r"part: \[0\.6, 0\.2\] holds no query"):
        of(0.6, 0.2)
