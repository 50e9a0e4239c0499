"""From a configuration to what a run reads: sampled data sets, training examples, candidate lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unimoer.config import DataConfig, DomainConfig
from unimoer.data.bm25 import BM25
from unimoer.data.formats import judged, load_dataset
from unimoer.data.negatives import judged_negatives, mine_cached
from unimoer.data.subset import subset
from unimoer.errors import UserError
from unimoer.types import Example, Qrels, RetrievalDataset, Run


@dataclass(frozen=True)
class PreparedDomain:
    """One domain, ready to train on and to evaluate."""

    name: str
    config: DomainConfig
    dataset: RetrievalDataset
    examples: tuple[Example, ...]
    """Training queries with positives and mined negatives; empty when the domain is not trained on."""
    test: Qrels
    candidates: Run
    """BM25's top documents for every test query: the lists that every arm reranks, and BM25's own ranking."""
    without_positive: Mapping[str, int] = field(default_factory=dict)
    """Queries of each split that have no relevant document and are left out."""


def prepare_domain(name: str, config: DomainConfig, data: DataConfig, *, depth: int) -> PreparedDomain:
    """Load and sample one domain, mine negatives and draw candidate lists.

    Raises:
        UserError: the source is wrong, or a split that is needed has no judged query.
    """
    splits: dict[str, int | None] = {}
    if config.train:
        splits[config.train_split] = config.train_queries
    if config.evaluate:
        splits[config.test_split] = config.test_queries
    full = load_dataset(config.source)
    dataset = subset(full, queries=splits, documents=config.documents, seed=data.sample_seed)
    for split in splits:
        if not judged(dataset, split):
            raise UserError(f"data.domains.{name}: split '{split}' of {config.source} has no query with a positive")
    examples: tuple[Example, ...] = ()
    if config.train:
        examples = _examples(name, dataset, config, data)
    test = judged(dataset, config.test_split) if config.evaluate else {}
    candidates: Run = {}
    if config.evaluate:
        index = BM25.of(dataset, split_identifiers=config.split_identifiers)
        candidates = index.search({query: dataset.queries[query] for query in test}, max(depth, 100))
    without = {split: len(full.split(split)) - len(judged(full, split)) for split in splits}
    return PreparedDomain(name, config, dataset, examples, test, candidates, without)


def prepare(data: DataConfig, *, depth: int) -> dict[str, PreparedDomain]:
    """All domains of a configuration, by name."""
    return {name: prepare_domain(name, config, data, depth=depth) for name, config in data.domains.items()}


def _examples(name: str, dataset: RetrievalDataset, config: DomainConfig, data: DataConfig) -> tuple[Example, ...]:
    mined: Mapping[str, list[str]] = {}
    if config.mine_negatives:
        negatives = data.negatives.model_copy(update={"split_identifiers": config.split_identifiers})
        mined = mine_cached(dataset, config.train_split, config=negatives)
    given = judged_negatives(dataset, config.train_split)
    examples = []
    for query, grades in judged(dataset, config.train_split).items():
        # Documents that the data set itself judged not relevant come first: they are certain.
        hard = dict.fromkeys([*given[query], *mined.get(query, [])])
        positives = tuple(document for document, grade in grades.items() if grade > 0)
        examples.append(Example(name, query, dataset.queries[query], positives, tuple(hard)))
    return tuple(examples)


def training_examples(domains: Mapping[str, PreparedDomain]) -> dict[str, tuple[Example, ...]]:
    """Examples of the domains that are trained on."""
    return {name: domain.examples for name, domain in domains.items() if domain.examples}


def left_out(domains: Mapping[str, PreparedDomain]) -> list[str]:
    """One line for each split with queries that have no relevant document, for there is nothing to learn or measure,
    and the warnings of each data set."""
    lines = []
    for name, domain in domains.items():
        lines += [f"{name}: {warning}" for warning in domain.dataset.warnings]
        splits = [domain.config.train_split] * domain.config.train + [domain.config.test_split] * domain.config.evaluate
        for split in dict.fromkeys(splits):
            count = domain.without_positive.get(split, 0)
            if count:
                lines.append(f"{name}: queries of split '{split}' without a relevant document, left out: {count:,}")
    return lines
