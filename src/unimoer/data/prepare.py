"""From a configuration to what training reads: sampled data sets, and examples with mined negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unimoer.config import DataConfig, DomainConfig
from unimoer.data.formats import judged, load_source
from unimoer.data.held_out import held_out, training_corpus
from unimoer.data.negatives import Positives, judged_negatives, mine_cached, relevant_elsewhere
from unimoer.data.subset import part, subset
from unimoer.data.trec import read_trec
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Example, RetrievalDataset, Run


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
    mined_from: str = ""
    """SHA-256 of the run file that negatives were mined from; empty for BM25."""

    @property
    def fingerprint(self) -> str:
        """Of all that training reads."""
        if not self.mined_from:
            return self.dataset.fingerprint
        return hashlib.sha256(f"{self.dataset.fingerprint}|{self.mined_from}".encode()).hexdigest()


def prepare_domain(name: str, config: DomainConfig, data: DataConfig) -> TrainingDomain:
    """Load and sample one domain and mine its negatives.

    Raises:
        UserError: the source is wrong, or the split has no judged query.
    """
    full = load_source(f"data.domains.{name}.source", config.source)
    if not judged(full, config.split):
        if config.split not in full.qrels:
            raise UserError(
                f"data.domains.{name}: {config.source} has no split '{config.split}'"
                f"{did_you_mean(config.split, full.qrels)}"
            )
        raise UserError(f"data.domains.{name}: split '{config.split}' of {config.source} has no query with a positive")
    shown = training_corpus(full, config.split)
    own = part(shown, config.split, data.part, data.sample_seed)
    if not own.qrels[config.split]:
        raise UserError(f"data.part: [{data.part[0]:g}, {data.part[1]:g}] leaves no query of data.domains.{name}")
    dataset = subset(own, queries={config.split: config.queries}, documents=config.documents, seed=data.sample_seed)
    left_out = len(full.split(config.split)) - len(judged(full, config.split))
    hidden = held_out(full, config.split).held_out
    run, mined_from = _given_run(name, dataset, config)
    examples = _examples(name, dataset, config, data, run, relevant_elsewhere(shown, config.split))
    return TrainingDomain(name, config, dataset, examples, left_out, hidden, mined_from)


def prepare(data: DataConfig) -> dict[str, TrainingDomain]:
    """All domains that a configuration trains on, by name."""
    return {name: prepare_domain(name, config, data) for name, config in data.trained.items()}


def _given_run(name: str, dataset: RetrievalDataset, config: DomainConfig) -> tuple[Run | None, str]:
    """The run to mine from, without documents that training may not show, and its hash; None for BM25."""
    if config.negatives_run is None or not config.mine_negatives:
        return None, ""
    path = Path(config.negatives_run).expanduser()
    run = {
        query: {document: score for document, score in scores.items() if document in dataset.corpus}
        for query, scores in read_trec(path).items()
    }
    queries = judged(dataset, config.split)
    lacking = [query for query in queries if not run.get(query)]
    if lacking:
        raise UserError(
            f"data.domains.{name}.negatives_run: {path}: no documents for {len(lacking)} of {len(queries)} queries of "
            f"split '{config.split}', such as '{lacking[0]}'; rank that split's queries over this corpus"
        )
    return run, hashlib.sha256(path.read_bytes()).hexdigest()


def _examples(
    name: str,
    dataset: RetrievalDataset,
    config: DomainConfig,
    data: DataConfig,
    run: Run | None,
    known: Positives,
) -> tuple[Example, ...]:
    mined: Mapping[str, list[str]] = {}
    if config.mine_negatives:
        negatives = data.negatives.model_copy(update={"split_identifiers": config.split_identifiers})
        mined = mine_cached(dataset, config.split, scorer=run, config=negatives, known=known)
    given = judged_negatives(dataset, config.split)
    examples = []
    for query, grades in judged(dataset, config.split).items():
        # What the data set itself brings comes first: judgements, or the mined negatives of a file of triplets.
        hard = dict.fromkeys([*given[query], *mined.get(query, [])])
        positives = tuple(document for document, grade in grades.items() if grade > 0)
        examples.append(Example(name, query, dataset.queries[query], positives, tuple(hard)))
    return tuple(examples)
