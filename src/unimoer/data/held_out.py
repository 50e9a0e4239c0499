"""The corpus that training may show: without the documents that an evaluation asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from unimoer.data.formats import judged
from unimoer.errors import UserError, did_you_mean
from unimoer.types import RetrievalDataset


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Documents that held-out splits judge relevant and training does not, and those that both do, by number."""

    held_out: int
    shared: int


def training_corpus(
    dataset: RetrievalDataset, train_split: str, held_out_splits: Iterable[str] | None = None
) -> RetrievalDataset:
    """The data set as training may read it: mined and random negatives of it can show no held-out document.

    Documents that a held-out split judges relevant are removed with their judgements, and so are others with the same
    content; what the training split judges relevant stays, whatever else judges it. `held_out_splits` are all but the
    training one unless given.

    Raises UserError for a split that the data set does not have.
    """
    relevant, held_out = _relevant_and_held_out(dataset, train_split, held_out_splits)
    contents = {dataset.corpus[key].content for key in held_out - relevant}
    corpus = {
        key: document for key, document in dataset.corpus.items() if key in relevant or document.content not in contents
    }
    qrels = {}
    for split, queries in dataset.qrels.items():
        kept = {
            query: {key: grade for key, grade in grades.items() if key in corpus} for query, grades in queries.items()
        }
        qrels[split] = {query: grades for query, grades in kept.items() if grades}
    families = {key: family for key, family in dataset.families.items() if key in corpus}
    return replace(dataset, corpus=corpus, qrels=qrels, families=families)


def held_out(dataset: RetrievalDataset, train_split: str, held_out_splits: Iterable[str] | None = None) -> HeldOut:
    """What `training_corpus` removes by judgement, and what it keeps although held-out splits judge it relevant."""
    relevant, tested = _relevant_and_held_out(dataset, train_split, held_out_splits)
    return HeldOut(len(tested - relevant), len(tested & relevant))


def _relevant_and_held_out(
    dataset: RetrievalDataset, train_split: str, held_out_splits: Iterable[str] | None
) -> tuple[set[str], set[str]]:
    """Documents of the corpus that the training split judges relevant, and those that the held-out splits do."""
    splits = dataset.qrels.keys() - {train_split} if held_out_splits is None else set(held_out_splits)
    for split in (train_split, *splits):
        if split not in dataset.qrels:
            raise UserError(f"data set '{dataset.name}' has no split '{split}'{did_you_mean(split, dataset.qrels)}")
    return _relevant(dataset, (train_split,)), _relevant(dataset, splits - {train_split})


def _relevant(dataset: RetrievalDataset, splits: Iterable[str]) -> set[str]:
    return {
        key
        for split in splits
        for grades in judged(dataset, split).values()
        for key, grade in grades.items()
        if grade > 0 and key in dataset.corpus
    }
