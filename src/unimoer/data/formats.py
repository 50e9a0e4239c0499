"""One function that turns any source of data into a RetrievalDataset.

A new kind of source is one loader and one line in `LOADERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unimoer.data.beir import read_beir, write_beir
from unimoer.data.collector import Problems
from unimoer.data.embedded import DOMAINS, load_embedded
from unimoer.data.hub import load_hf, load_ir
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Qrels, RetrievalDataset

__all__ = ["LOADERS", "Checked", "check", "judged", "load_dataset", "write_beir"]

LOADERS: dict[str, Callable[[str, Problems], RetrievalDataset]] = {
    "embedded": lambda name, problems: load_embedded(name),
    "hf": load_hf,
    "ir": load_ir,
}


@dataclass(frozen=True)
class Checked:
    """What could be read, None when nothing could, and every kind of problem as one line."""

    dataset: RetrievalDataset | None
    problems: list[str]
    warnings: list[str]
    """What a run would leave out."""


def load_dataset(source: str | Path, split: str | None = None, *, strict: bool = False) -> RetrievalDataset:
    """Load a folder in BEIR layout, or `embedded:NAME`, `hf:ID_OR_FOLDER`, `ir:ID`; a domain's bare name also works.

    With `split`, only its judgements and their queries are kept; the corpus stays whole. Queries without a relevant
    document stay in `queries`: take the ones to train and evaluate on from `judged`. Judgements that are repeated or
    name an unknown query or document are counted in `warnings`; with `strict`, they are problems.

    Raises UserError for an unknown source or split, and for the first problem in the data, with file and line.
    """
    dataset = _load(str(source), Problems(strict=strict))
    if split is None:
        return dataset
    if split not in dataset.qrels:
        raise UserError(f"{source}: has no split '{split}'{did_you_mean(split, dataset.qrels)}")
    qrels = dataset.qrels[split]
    return replace(dataset, queries={key: dataset.queries[key] for key in qrels}, qrels={split: qrels})


def load_source(where: str, source: str) -> RetrievalDataset:
    """As `load_dataset`. An error of the source itself names `where` it was given; one inside of it, file and line."""
    try:
        return load_dataset(source)
    except UserError as error:
        if Path(source).exists():
            raise
        raise UserError(f"{where}: {error}") from error


def judged(dataset: RetrievalDataset, split: str) -> Qrels:
    """The judgements of the queries of a split that have at least one relevant document; empty for no such split.

    Grades of 0 and below are kept: they are judged negatives.
    """
    return {query: grades for query, grades in dataset.split(split).items() if any(g > 0 for g in grades.values())}


def check(source: str | Path, *, strict: bool = False) -> Checked:
    """Read a source to its end and collect every problem instead of stopping at the first.

    Queries that no split judges or that have no relevant document are warnings, unless a problem or warning that is
    already there may be the reason; with `strict` they are problems.
    """
    found = Problems(collect=True, strict=strict)
    try:
        dataset = _load(str(source), found)
    except UserError as error:
        return Checked(None, [*found.lines, str(error)], [])
    problems, warnings = found.lines, list(dataset.warnings)
    if found.all_doubtful:
        return Checked(dataset, problems, warnings)
    unused = problems if strict else warnings
    judged_somewhere: set[str] = set(found.doubtful)
    for split, qrels in dataset.qrels.items():
        judged_somewhere.update(qrels)
        positive = judged(dataset, split)
        without = [query for query in qrels if query not in positive and query not in found.doubtful]
        unused += _counted(f"{source}: query '{{}}' has no relevant document in split '{split}'", without)
    unjudged = [query for query in dataset.queries if query not in judged_somewhere]
    unused += _counted(f"{source}: query '{{}}' is judged in no split", unjudged)
    return Checked(dataset, problems, warnings)


def _counted(line: str, queries: Sequence[str]) -> list[str]:
    """One line for all of them, with the first by name."""
    more = f" ({len(queries):,} such queries)" if len(queries) > 1 else ""
    return [line.format(queries[0]) + more] if queries else []


def _load(source: str, problems: Problems) -> RetrievalDataset:
    path = Path(source)
    if path.is_dir():
        return read_beir(path, problems=problems)
    if path.exists():
        raise UserError(f"'{source}' is a file; a data set is a folder with corpus.jsonl, queries.jsonl and qrels/")
    prefix, colon, rest = source.partition(":")
    if colon and "/" not in prefix and "\\" not in rest:
        if prefix not in LOADERS:
            raise UserError(f"'{source}': unknown kind of source '{prefix}:'{did_you_mean(prefix, LOADERS)}")
        return LOADERS[prefix](rest, problems)
    if source in DOMAINS:
        return load_embedded(source)
    hint = "" if "/" in source or "\\" in source else did_you_mean(source, DOMAINS)
    raise UserError(f"folder '{source}' does not exist{hint}")
