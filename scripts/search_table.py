#!/usr/bin/env python3
"""What a smaller or a faster index loses: the two tables of docs/search.md.

python scripts/search_table.py int8                   # int8 vectors beside float16, on the embedded data sets
python scripts/search_table.py faiss                  # FAISS beside an exact search, on clusters drawn at random
python scripts/search_table.py faiss --dimension 576
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import typer

from unimoer import UniMoER
from unimoer.data.embedded import DOMAINS, load_embedded
from unimoer.evaluation.metrics import evaluate_run, mean
from unimoer.runtime import favour_speed
from unimoer.search.changes import PART, choose
from unimoer.search.dense import Dense
from unimoer.search.neighbours import Ann
from unimoer.search.store import State, Store
from unimoer.search.vectors import VECTORS, Precision

DEPTHS = (10, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True, dest="kind")
    int8 = kinds.add_parser("int8")
    int8.add_argument("--model", default="smollm2-135m-search")
    int8.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    int8.add_argument("--split", choices=("dev", "test"), default="dev")
    int8.add_argument("--queries", type=int, default=300, help="the first of the split")
    faiss = kinds.add_parser("faiss")
    faiss.add_argument("--documents", type=int, default=200_000)
    faiss.add_argument("--dimension", type=int, default=64)
    faiss.add_argument("--queries", type=int, default=200)
    faiss.add_argument("--vectors", choices=get_args(Precision), default="float16")
    options = parser.parse_args()
    favour_speed()
    with tempfile.TemporaryDirectory() as folder:
        if options.kind == "int8":
            model = UniMoER.load(options.model)
            for name in options.domains:
                smaller(model, name, options.split, options.queries, Path(folder) / name)
        else:
            faster(options.documents, options.dimension, options.queries, options.vectors, Path(folder))


def smaller(model: UniMoER, name: str, split: str, most: int, folder: Path) -> None:
    """Every text is embedded once."""
    started = time.perf_counter()
    dataset = load_embedded(name)
    judged = dict(list(dataset.split(split).items())[:most])
    keys = list(dataset.corpus)
    documents = model.encode([document.content for document in dataset.corpus.values()], "document")
    queries = model.encode([dataset.queries[query] for query in judged], "query")
    runs: list[dict[str, dict[str, float]]] = []
    for precision, kind in VECTORS.items():
        (folder / precision).mkdir(parents=True)
        kind.write(folder / precision, documents)
        kept = kind(folder / precision)
        runs.append({})
        for query, vector in zip(judged, queries, strict=True):
            scores = kept.dot(vector)
            best = np.argsort(-scores, kind="stable")[: max(DEPTHS)]
            runs[-1][query] = {keys[place]: float(scores[place]) for place in best}
    scored = [mean(evaluate_run(judged, run))["ndcg@10"] for run in runs]
    values = [f"nDCG@10 of {kind} {score:.4f}" for kind, score in zip(VECTORS, scored, strict=True)]
    values += shared(*([list(ranked) for ranked in run.values()] for run in runs))
    size = f"{len(judged)} queries, {len(keys)} documents, {time.perf_counter() - started:.0f} s"
    typer.echo(f"{name}: {'  '.join(values)}  ({size})")


def faster(documents: int, dimension: int, count: int, vectors: Precision, folder: Path) -> None:
    """An index without texts, searched in each way."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((2000, dimension), dtype=np.float32)

    def draw(number: int) -> np.ndarray:
        """As far from a centre of a cluster as the centre is from the origin."""
        found = centres[generator.integers(len(centres), size=number)]
        found += generator.standard_normal((number, dimension), dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    store = Store(folder, State("drawn", "at random", vectors=vectors))
    parts: dict[str, list[int]] = {}
    for start in range(0, documents, PART):
        keys = [f"d{number}" for number in range(start, min(start + PART, documents))]
        parts[store.write(dict.fromkeys(keys, ""), draw(len(keys))).folder.name] = []
    queries = draw(count)
    store.commit(replace(store.state, parts=parts), finished=True)
    store = Store.open(folder)
    expected: list[list[str]] = []
    kinds: tuple[Ann, ...] = ("exact", "ivf", "hnsw")
    for ann in kinds:
        started = time.perf_counter()
        store = choose(store, ann)
        built = time.perf_counter() - started
        dense = Dense(store)
        found: list[list[str]] = []
        times: list[float] = []
        for query in queries:
            started = time.perf_counter()
            found.append(list(dense.search(query, max(DEPTHS))))
            times.append(time.perf_counter() - started)
        expected = expected or found
        size = sum(path.stat().st_size for path in folder.glob("faiss/*/*")) / 1e6
        values = [f"{np.median(times) * 1000:.2f} ms a query (median)", *shared(expected, found)]
        typer.echo(f"{ann}: {'  '.join(values)}  (built in {built:.1f} s, {size:.0f} MB more)")


def shared(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Iterator[str]:
    """How much of the first k is the same, over all queries."""
    for depth in DEPTHS:
        same = [len({*one[:depth]} & {*other[:depth]}) / depth for one, other in zip(expected, found, strict=True)]
        yield f"of the first {depth} the same {np.mean(same):.4f}"


if __name__ == "__main__":
    sys.exit(main())
