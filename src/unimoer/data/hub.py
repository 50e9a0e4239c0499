"""Data sets of the Hugging Face hub (or saved to disk by `datasets`) and of ir_datasets; both packages are optional.

Only data files are read: no loading script of a data set is ever run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unimoer.data.collector import Collector, Problems
from unimoer.data.embedded.text import short_hash
from unimoer.errors import UserError, did_you_mean
from unimoer.types import Document, RetrievalDataset

_QRELS = ("qrels", "default")
_DEV_NAMES = {"validation": "dev", "valid": "dev", "val": "dev"}
_QUERY_COLUMNS = ("query", "anchor", "question")
_POSITIVE_COLUMNS = ("positive", "pos", "answer", "document", "passage")
_NEGATIVE_COLUMN = re.compile(r"neg(?:ative)?s?(?:_(\d+))?")

Tables = Mapping[str, Any]
"""Split name -> datasets.Dataset."""


def load_hf(source: str, problems: Problems) -> RetrievalDataset:
    """`ORG/NAME`, `ORG/NAME#CONFIG` or a local folder.

    Read as a retrieval data set where it has `corpus` and `queries` (as configurations, or as sub-folders made by
    `save_to_disk`) with judgements in `qrels` or `default`; otherwise as rows of query, positive and, where there are
    any, negatives. Of such rows, ids are hashes of the texts, and negatives are documents judged 0.
    """
    datasets = require("datasets", "hf:")
    path, _, config = source.partition("#")
    folder = Path(path).expanduser()
    name = f"hf:{source}"
    with errors_of(name):
        if folder.is_dir() and not config:
            if (folder / "corpus").is_dir() and (folder / "queries").is_dir():
                return _saved_retrieval(datasets, folder, problems)
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                return _triplets(folder.name, name, _tables(datasets.load_from_disk(str(folder))), problems)
        if config:
            return _triplets(name, name, _tables(datasets.load_dataset(path, config)), problems)
        configs = datasets.get_dataset_config_names(path)
        if {"corpus", "queries"} <= set(configs):
            judgements = next(((path, key) for key in _QRELS if key in configs), (f"{path}-qrels", None))
            return _retrieval(
                path.rstrip("/").split("/")[-1],
                name,
                _tables(datasets.load_dataset(path, "corpus")),
                _tables(datasets.load_dataset(path, "queries")),
                _tables(datasets.load_dataset(*judgements)),
                problems,
            )
        if len(configs) > 1:
            raise UserError(f"{name}: has several configurations; name one as hf:{path}#CONFIG: {', '.join(configs)}")
        return _triplets(path, name, _tables(datasets.load_dataset(path)), problems)


def read_rows(source: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of one split of a data set, each with all its columns; `source` as in `load_hf`, rows of any kind.

    Raises:
        UserError: it cannot be loaded, or has no such split.
    """
    datasets = require("datasets", "hf:")
    path, _, config = source.partition("#")
    folder = Path(path).expanduser()
    name = f"hf:{source}"
    with errors_of(name):
        if not config and ((folder / "dataset_dict.json").exists() or (folder / "state.json").exists()):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(path, config or None)
        # A table that was saved alone has no name.
        tables = loaded if isinstance(loaded, dict) else {split: loaded}
        if split not in tables:
            raise UserError(f"{name}: has no split '{split}'{did_you_mean(split, tables)}")
        for batch in tables[split].iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def load_ir(source: str, problems: Problems) -> RetrievalDataset:
    """An id of ir_datasets, or several of one corpus joined by commas, each a split named by its last part.

    `msmarco-passage/train,msmarco-passage/dev/small` has the splits train and dev; an id that names none is test.
    """
    ir_datasets = require("ir_datasets", "ir:")
    name = f"ir:{source}"
    ids = source.split(",")
    with errors_of(name):
        if len({ir_datasets.docs_parent_id(key) for key in ids}) > 1:
            raise UserError(f"{name}: the ids do not share one corpus")
        parts = {key: ir_datasets.load(key) for key in ids}
        for key, part in parts.items():
            if not (part.has_docs() and part.has_queries() and part.has_qrels()):
                raise UserError(f"ir:{key}: lacks documents, queries or judgements; name one of its parts")
        collector = Collector(source, problems)
        for row, document in enumerate(parts[ids[0]].docs_iter(), 1):
            if isinstance(getattr(document, "text", None), str):
                record = {"_id": document.doc_id, "title": getattr(document, "title", ""), "text": document.text}
            else:
                record = {"_id": document.doc_id, "text": document.default_text()}
            collector.document(f"{name} documents", row, record)
        for key, part in parts.items():
            for row, query in enumerate(part.queries_iter(), 1):
                if collector.queries.get(query.query_id) != query.default_text():
                    collector.query(f"ir:{key} queries", row, {"_id": query.query_id, "text": query.default_text()})
            collector.require_texts(name)
            for row, judgement in enumerate(part.qrels_iter(), 1):
                where, split = f"ir:{key} qrels", _ir_split(key)
                collector.judgement(where, row, split, judgement.query_id, judgement.doc_id, judgement.relevance)
        return collector.build(name)


def _saved_retrieval(datasets: Any, folder: Path, problems: Problems) -> RetrievalDataset:
    qrels = next((folder / key for key in _QRELS if (folder / key).is_dir()), None)
    if qrels is None:
        raise UserError(f"{folder}: holds corpus and queries, but no judgements in qrels or default")
    corpus, queries, judgements = (
        _tables(datasets.load_from_disk(str(path))) for path in (folder / "corpus", folder / "queries", qrels)
    )
    return _retrieval(folder.resolve().name, str(folder), corpus, queries, judgements, problems)


def _retrieval(
    name: str, source: str, corpus: Tables, queries: Tables, qrels: Tables, problems: Problems
) -> RetrievalDataset:
    collector = Collector(name, problems)
    for row, record in enumerate(_rows(f"{source} corpus", corpus.values(), ("_id", "text"), ("title",)), 1):
        collector.document(f"{source} corpus", row, record)
    for row, record in enumerate(_rows(f"{source} queries", queries.values(), ("_id", "text")), 1):
        collector.query(f"{source} queries", row, record)
    collector.require_texts(source)
    for split, table in qrels.items():
        where = f"{source} {split} judgements"
        for row, record in enumerate(_rows(where, [table], ("query-id", "corpus-id", "score")), 1):
            split_name = _DEV_NAMES.get(split, split)
            collector.judgement(where, row, split_name, record["query-id"], record["corpus-id"], record["score"])
    return collector.build(source)


def _triplets(name: str, source: str, tables: Tables, problems: Problems) -> RetrievalDataset:
    """Every distinct text becomes one query or document, however many rows repeat it."""
    collector = Collector(name, problems)
    for table_name, table in tables.items():
        split = _DEV_NAMES.get(table_name, table_name)
        where = f"{source} {table_name}"
        query_column, positive_column, negative_columns = _triplet_columns(where, table.column_names)
        columns = (query_column, positive_column, *negative_columns)
        for row, record in enumerate(_rows(where, [table], columns), 1):
            query, positives = record[query_column], _texts(record[positive_column])
            negatives = [_texts(record[column]) for column in negative_columns]
            if not isinstance(query, str) or not query.strip() or not positives or None in negatives:
                problems.add(
                    f"{where}:{row}: '{query_column}', '{positive_column}' and negatives must be texts, not empty"
                )
                continue
            query_id = "q" + short_hash(query, 16)
            collector.queries[query_id] = query
            grades = collector.qrels.setdefault(split, {}).setdefault(query_id, {})
            for text in positives:
                grades[_add(collector, text)] = 1
            for text in (text for texts in negatives for text in texts or ()):
                # Another row may call the same text relevant; that weighs more.
                grades.setdefault(_add(collector, text), 0)
    collector.require_texts(source)
    return collector.build(source)


def _add(collector: Collector, text: str) -> str:
    document_id = "d" + short_hash(text, 16)
    collector.corpus.setdefault(document_id, Document(text))
    return document_id


def _texts(value: object) -> list[str] | None:
    """A text or a list of texts as a list; None for anything else."""
    values = value if isinstance(value, list) else [value]
    texts = [item for item in values if isinstance(item, str)]
    return texts if len(texts) == len(values) else None


def _triplet_columns(where: str, columns: list[str]) -> tuple[str, str, list[str]]:
    query = next((name for name in _QUERY_COLUMNS if name in columns), None)
    positive = next((name for name in _POSITIVE_COLUMNS if name in columns), None)
    if query is None or positive is None:
        raise UserError(f"{where}: has the columns {', '.join(columns)}; 'query' and 'positive' are needed")
    numbered = [(int(match[1] or 0), name) for name in columns if (match := _NEGATIVE_COLUMN.fullmatch(name))]
    return query, positive, [name for _, name in sorted(numbered)]


def _tables(loaded: Any) -> Tables:
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _rows(
    where: str, tables: Iterable[Any], columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Rows in batches: row by row, Arrow needs an hour for millions of passages."""
    for table in tables:
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise UserError(f"{where}: has the columns {', '.join(table.column_names)}; '{missing[0]}' is needed")
        kept = [*columns, *(name for name in optional if name in table.column_names)]
        for batch in table.select_columns(kept).iter(batch_size=1000):
            for values in zip(*(batch[name] for name in kept), strict=True):
                yield dict(zip(kept, values, strict=True))


def _ir_split(key: str) -> str:
    names = [_DEV_NAMES.get(part, part) for part in key.split("/")]
    return next((name for name in reversed(names) if name in ("train", "dev", "test")), "test")


def require(module: str, prefix: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"'{prefix}' sources need the package {module}: pip install 'unimoer[hub]'") from error


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Whatever these libraries raise (network, unknown id, broken file: they share no base class) in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{name} could not be loaded: {type(error).__name__}: {reason}") from error
