"""Suites: named lists of collections that are ranked and scored alike.

A new one is a function that lists its collections and one line in `SUITES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unimoer.config import CollectionConfig, SuiteConfig
from unimoer.data.embedded import DOMAINS
from unimoer.data.formats import judged, load_source
from unimoer.data.subset import subset
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Qrels, RetrievalDataset


@dataclass(frozen=True)
class Collection:
    """One test collection, sampled and ready to be ranked."""

    name: str
    config: CollectionConfig
    split: str
    dataset: RetrievalDataset
    qrels: Qrels
    """Of the queries that have a relevant document."""
    without_positive: int = 0
    """Judged queries that have none, and are left out."""

    @property
    def queries(self) -> dict[str, str]:
        """The judged queries, id -> text, in the order of their ids."""
        return {query: self.dataset.queries[query] for query in sorted(self.qrels)}


def _embedded() -> dict[str, CollectionConfig]:
    return {
        name: CollectionConfig(source=f"embedded:{name}", split_identifiers=name == "code")
        for name, domain in DOMAINS.items()
        if domain.queries.get("train")
    }


SUITES: dict[str, Callable[[], dict[str, CollectionConfig]]] = {
    "embedded": _embedded,
}
"""By name; a suite may also be a folder of folders in BEIR layout, or be written out in a configuration."""


def collection_of(source: str) -> CollectionConfig:
    """The collection of a source: as a named suite has it, if one does, since its settings belong to the data."""
    listed = (config for make in SUITES.values() for config in make().values())
    return next((config for config in listed if config.source == source), CollectionConfig(source=source))


def list_collections(suite: SuiteConfig) -> dict[str, CollectionConfig]:
    """The collections of a suite by name; what one leaves open is as the suite has it.

    Raises:
        UserError: there is no such suite or folder, or it lacks a collection that is asked for.
    """
    listed = _listed(suite.collections)
    for name in suite.only:
        if name not in listed:
            raise UserError(
                f"evaluation: suite '{suite.collections}' has no collection '{name}'{did_you_mean(name, listed)}"
            )
    common = {"split": suite.split, "queries": suite.queries, "documents": suite.documents}
    return {
        name: config.model_copy(
            update={key: value for key, value in common.items() if getattr(config, key) is None and value is not None}
        )
        for name, config in listed.items()
        if not suite.only or name in suite.only
    }


def _listed(collections: str | Mapping[str, CollectionConfig]) -> Mapping[str, CollectionConfig]:
    if not isinstance(collections, str):
        return collections
    if collections in SUITES:
        return SUITES[collections]()
    folder = Path(collections)
    if folder.is_dir():
        found = {
            path.name: CollectionConfig(source=str(path))
            for path in sorted(folder.iterdir())
            if any((path / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))
        }
        if not found:
            raise UserError(f"{folder}: no folder with a corpus.jsonl in it; a suite is a folder of BEIR folders")
        return found
    raise UserError(f"evaluation: no suite or folder '{collections}'{did_you_mean(collections, SUITES)}")


def load_suite(suite: SuiteConfig) -> dict[str, Collection]:
    """Load and sample every collection of a suite.

    Raises:
        UserError: a source is wrong, or a split has no judged query.
    """
    return {name: load_collection(name, config, suite) for name, config in list_collections(suite).items()}


def load_collection(name: str, config: CollectionConfig, suite: SuiteConfig) -> Collection:
    """One collection; `config` as `list_collections` gives it."""
    split = config.split or suite.split
    full = load_source(f"collection '{name}'", config.source)
    if split not in full.qrels:
        raise UserError(f"collection '{name}': {config.source} has no split '{split}'{did_you_mean(split, full.qrels)}")
    dataset = subset(full, queries={split: config.queries}, documents=config.documents, seed=suite.sample_seed)
    qrels = judged(dataset, split)
    if not qrels:
        raise UserError(
            f"collection '{name}': split '{split}' of {config.source} has no query with a relevant document"
        )
    left_out = len(full.split(split)) - len(judged(full, split))
    return Collection(name, config, split, dataset, qrels, left_out)
