"""What runs read, loaded once a process: training data, suites, and the candidate lists that all systems share."""

from __future__ import annotations

from functools import lru_cache

from unimoer.config import DataConfig, SuiteConfig
from unimoer.data.prepare import TrainingDomain, prepare
from unimoer.evaluation.first_stage import bm25_run, shared_candidates
from unimoer.evaluation.suites import Collection, load_suite
from unimoer.model import identity
from unimoer.types import Run

# Under their JSON: configurations hold dictionaries, which have no hash.


def training_data(config: DataConfig) -> dict[str, TrainingDomain]:
    return _training_data(config.model_dump_json())


def suite_data(config: SuiteConfig) -> dict[str, Collection]:
    """Collections by name."""
    return _suite_data(config.model_dump_json())


def candidates(config: SuiteConfig, collection: str) -> Run:
    """The first stage of a collection; not of `dense`, which depends on the model."""
    return _candidates(config.model_dump_json(), collection)


def lacking(config: SuiteConfig) -> list[str]:
    """Collections whose run file has no candidates for some queries, a line each: such a query scores 0 in all systems.

    Raises:
        UserError: a run file is missing, broken, or lists documents that the collection lacks.
    """
    if config.first_stage in ("bm25", "dense"):
        return []
    lines = []
    for name, collection in suite_data(config).items():
        found = candidates(config, name)
        missing = [query for query in collection.queries if not found.get(query)]
        if missing:
            lines.append(
                f"{name}: {config.first_stage} has no candidates for {len(missing):,} of "
                f"{len(collection.queries):,} queries, such as '{missing[0]}', which all systems score 0 on"
            )
    return lines


def bm25(config: SuiteConfig, collection: str) -> Run:
    """BM25's own ranking of a collection, whatever its first stage is."""
    return _bm25(config.model_dump_json(), collection)


def forget() -> None:
    """Read everything anew at its next use: files may have changed since, in a process that lives long."""
    for cached in (_training_data, _suite_data, _bm25, _candidates):
        cached.cache_clear()
    identity.forget()


@lru_cache(maxsize=2)
def _training_data(content: str) -> dict[str, TrainingDomain]:
    return prepare(DataConfig.model_validate_json(content))


@lru_cache(maxsize=4)
def _suite_data(content: str) -> dict[str, Collection]:
    return load_suite(SuiteConfig.model_validate_json(content))


@lru_cache(maxsize=64)
def _bm25(content: str, collection: str) -> Run:
    return bm25_run(_suite_data(content)[collection], SuiteConfig.model_validate_json(content).rerank_depth)


@lru_cache(maxsize=64)
def _candidates(content: str, collection: str) -> Run:
    config = SuiteConfig.model_validate_json(content)
    if config.first_stage == "bm25":
        return _bm25(content, collection)
    return shared_candidates(config.first_stage, _suite_data(content)[collection], config.rerank_depth)
