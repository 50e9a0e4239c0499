"""What training may show: nothing that a held-out split asks for, unless training itself asks for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimoer.config import NegativesConfig
from unimoer.data import load_dataset
from unimoer.data.bm25 import BM25
from unimoer.data.embedded import DOMAINS
from unimoer.data.held_out import HeldOut, held_out, training_corpus
from unimoer.data.negatives import judged_negatives, mine
from unimoer.errors import UserError
from unimoer.types import Document, RetrievalDataset

CORPUS = {f"d{number}": Document(f"apple text {number}") for number in range(8)} | {"twin": Document("apple text 3")}
DATASET = RetrievalDataset(
    "x",
    CORPUS,
    dict.fromkeys(("q1", "q2", "q3", "q4"), "apple"),
    {
        "train": {"q1": {"d0": 1, "d3": 0}, "q2": {"d1": 2}},
        "dev": {"q3": {"d2": 1, "d5": 0}},
        "test": {"q4": {"d3": 1, "d0": 1}, "q1": {"d4": 1}},
    },
    families={"d3": "x", "d0": "x"},
)


def test_held_out_documents_and_their_twins_are_removed_and_shared_ones_stay() -> None:
    training = training_corpus(DATASET, "train")
    assert set(training.corpus) == {"d0", "d1", "d5", "d6", "d7"}
    assert training.families == {"d0": "x"}
    assert training.qrels == {
        "train": {"q1": {"d0": 1}, "q2": {"d1": 2}},
        "dev": {"q3": {"d5": 0}},
        "test": {"q4": {"d0": 1}},
    }
    assert held_out(DATASET, "train") == HeldOut(held_out=3, shared=1)


def test_only_named_splits_are_held_out() -> None:
    assert set(training_corpus(DATASET, "train", ["dev"]).corpus) == CORPUS.keys() - {"d2"}
    assert held_out(DATASET, "train", ["dev"]) == HeldOut(1, 0)
    assert held_out(DATASET, "train", []) == HeldOut(0, 0)
    assert training_corpus(DATASET, "train", ["train"]) == DATASET
    with pytest.raises(UserError, match="has no split 'tets'; did you mean 'test'"):
        training_corpus(DATASET, "train", ["tets"])


def test_a_twin_that_training_asks_for_stays() -> None:
    dataset = replace(DATASET, qrels={**DATASET.qrels, "train": {"q2": {"twin": 1}}})
    assert "twin" in training_corpus(dataset, "train").corpus
    assert "d3" not in training_corpus(dataset, "train").corpus


def test_negatives_of_every_kind_are_free_of_held_out_documents() -> None:
    """Over the whole corpus they are not: this is what the removal is for."""
    config = NegativesConfig(strategy="none", num_negatives=9)

    def negatives(dataset: RetrievalDataset) -> set[str]:
        mined = mine(dataset, "train", scorer=BM25.of(dataset), config=config)
        given = judged_negatives(dataset, "train")
        return {key for lists in (mined, given) for keys in lists.values() for key in keys}

    assert negatives(DATASET) & {"d2", "d3", "d4", "twin"}
    assert negatives(training_corpus(DATASET, "train")) == {"d0", "d1", "d5", "d6", "d7"}


grades = st.dictionaries(st.sampled_from(sorted(CORPUS)), st.integers(-1, 2), min_size=1)
splits = st.dictionaries(st.sampled_from(sorted(DATASET.queries)), grades, min_size=1)


@given(st.fixed_dictionaries({"train": splits, "dev": splits, "test": splits}))
def test_what_is_left(qrels: dict[str, dict[str, dict[str, int]]]) -> None:
    def relevant(*names: str) -> set[str]:
        return {k for name in names for found in qrels[name].values() for k, grade in found.items() if grade > 0}

    dataset = replace(DATASET, qrels=qrels)
    training = training_corpus(dataset, "train")
    assert training.corpus.keys() >= relevant("train")
    assert not training.corpus.keys() & (relevant("dev", "test") - relevant("train"))
    counts = held_out(dataset, "train")
    assert counts.held_out + counts.shared == len(relevant("dev", "test"))
    assert counts.shared == len(relevant("dev", "test") & relevant("train"))
    assert all(key in training.corpus for split in training.qrels.values() for found in split.values() for key in found)


@pytest.mark.assets
@pytest.mark.parametrize("name", DOMAINS)
def test_real_domains_share_what_they_say(name: str) -> None:
    counts = held_out(load_dataset(f"embedded:{name}"), "train", ["test"])
    assert (counts.shared > counts.held_out) is DOMAINS[name].seen_in_training
    assert counts.held_out > 0
    assert counts.shared == 0 or DOMAINS[name].seen_in_training
