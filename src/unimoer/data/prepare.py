"""From a configuration to what training reads: sampled data sets, and examples with mined negatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unimoer.config import DataConfig, DomainConfig
from unimoer.data.formats import judged, load_dataset
from unimoer.data.held_out import held_out, training_corpus
from unimoer.data.negatives import judged_negatives, mine_cached
from unimoer.data.subset import subset
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Example, RetrievalDataset


@dataclass(frozen=True)
class TrainingDomain:
    """One data set, ready to train on."""

    name: str
    config: DomainConfig
    dataset: RetrievalDataset
    """Its corpus is where negatives come from: documents that only other splits ask for are not in it."""
    examples: tuple[Example, ...]
    """Queries with positives and mined negatives."""
    without_positive: int = 0
    """Queries that have no relevant document and are left out."""
    held_out: int = 0
    """Documents that only other splits ask for."""


def prepare_domain(name: str, config: DomainConfig, data: DataConfig) -> TrainingDomain:
    """Load and sample one domain and mine its negatives.

    Raises:
        UserError: the source is wrong, or the split has no judged query.
    """
    full = load_dataset(config.source)
    if not judged(full, config.split):
        if config.split not in full.qrels:
            raise UserError(
                f"data.domains.{name}: {config.source} has no split '{config.split}'"
                f"{did_you_mean(config.split, full.qrels)}"
            )
        raise UserError(f"data.domains.{name}: split '{config.split}' of {config.source} has no query with a positive")
    shown = training_corpus(full, config.split)
    dataset = subset(shown, queries={config.split: config.queries}, documents=config.documents, seed=data.sample_seed)
    left_out = len(full.split(config.split)) - len(judged(full, config.split))
    hidden = held_out(full, config.split).held_out
    return TrainingDomain(name, config, dataset, _examples(name, dataset, config, data), left_out, hidden)


def prepare(data: DataConfig) -> dict[str, TrainingDomain]:
    """All domains of a configuration, by name."""
    return {name: prepare_domain(name, config, data) for name, config in data.domains.items()}


def _examples(name: str, dataset: RetrievalDataset, config: DomainConfig, data: DataConfig) -> tuple[Example, ...]:
    mined: Mapping[str, list[str]] = {}
    if config.mine_negatives:
        negatives = data.negatives.model_copy(update={"split_identifiers": config.split_identifiers})
        mined = mine_cached(dataset, config.split, config=negatives)
    given = judged_negatives(dataset, config.split)
    examples = []
    for query, grades in judged(dataset, config.split).items():
        # What the data set itself brings comes first: judgements, or the mined negatives of a file of triplets.
        hard = dict.fromkeys([*given[query], *mined.get(query, [])])
        positives = tuple(document for document, grade in grades.items() if grade > 0)
        examples.append(Example(name, query, dataset.queries[query], positives, tuple(hard)))
    return tuple(examples)
