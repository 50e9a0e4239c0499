#!/usr/bin/env python3
"""nDCG@10 of BM25, a public encoder and their fusion on the embedded data sets: the table of docs/references.md.

Samples and test queries, unless told otherwise:

    python scripts/reference_table.py all-minilm-l6-v2
    python scripts/reference_table.py all-minilm-l6-v2 --split dev --full
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import typer

from unimoer.data.bm25 import BM25
from unimoer.data.embedded import BUILDER_VERSION, DOMAINS, load_embedded
from unimoer.data.subset import subset
from unimoer.evaluation.fusion import fuse
from unimoer.evaluation.metrics import evaluate_run, mean
from unimoer.evaluation.reference import ENCODERS, load_encoder, rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", choices=ENCODERS)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--full", action="store_true", help="no samples")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()

    encoder = load_encoder(options.encoder, torch.device("cpu"))
    rows: list[dict[str, float]] = []
    typer.echo(
        f"builder version {BUILDER_VERSION}, split {options.split}, {'whole corpora' if options.full else 'samples'}"
    )
    for name in options.domains:
        dataset = load_embedded(name)
        if not options.full:
            # Training queries too: their relevant documents are in the corpus of an experiment.
            dataset = subset(dataset, queries={"train": 1500, options.split: 120}, documents=2000, seed=0)
        judged = dataset.split(options.split)
        queries = {query: dataset.queries[query] for query in judged}
        started = time.perf_counter()
        lexical = BM25.of(dataset, split_identifiers=name == "code").search(queries, 100)
        dense = rank(encoder, dataset, queries, batch=options.batch)
        runs = {"bm25": lexical, options.encoder: dense, "rrf": fuse([lexical, dense])}
        rows.append({label: mean(evaluate_run(judged, run))["ndcg@10"] for label, run in runs.items()})
        values = "  ".join(f"{label} {value:.3f}" for label, value in rows[-1].items())
        seconds = time.perf_counter() - started
        typer.echo(f"{name}: {len(queries)} queries, {len(dataset.corpus)} documents  {values}  {seconds:.0f} s")
    macro = {label: sum(row[label] for row in rows) / len(rows) for label in rows[0]}
    typer.echo("macro: " + "  ".join(f"{label} {value:.3f}" for label, value in macro.items()))


if __name__ == "__main__":
    sys.exit(main())
