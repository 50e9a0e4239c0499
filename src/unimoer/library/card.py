"""The model card of a portable folder: what it is, how to use it, what it was trained on and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimoer import __version__
from unimoer.config import BM25, DataConfig, ModelConfig
from unimoer.data.embedded import DOMAINS
from unimoer.evaluation.measures import Measure
from unimoer.runs.folder import FINAL, read_spec, run_of
from unimoer.schema import EvaluationSummary, read_record
from unimoer.types import Task

_METRIC = "ndcg@10"
_COLUMNS = {
    (BM25, Measure.EMBEDDING): "BM25",
    ("", Measure.EMBEDDING): "search",
    ("", Measure.FUSED): "search, fused with BM25",
    ("", Measure.RERANKING): "reranking",
    ("", Measure.BLENDED): "reranking, with BM25's scores",
    ("", Measure.SEARCH): "fused search, reranked",
}

_USE = """\
```python
from unimoer import UniMoER

model = UniMoER.load(".")  # this folder
documents = ["Planets grow from the disc of gas and dust around a young star.", "Bread needs flour."]
"""
_EMBED = """\
vectors = model.encode(documents, "document")
print(vectors @ model.encode(["how are planets formed"], "query")[0])
"""
_RERANK = """\
for index, score, text in model.rerank("how are planets formed", documents):
    print(index, round(score, 2), text)
"""


def card(checkpoint: Path, config: ModelConfig, content: Mapping[str, Any], tasks: Sequence[Task]) -> str:
    """Markdown; `content` is the folder's `unimoer.json`. Its one Python block runs in the folder."""
    run = run_of(checkpoint)
    spec = read_spec(run) if run is not None else None
    layers = f"its first {config.layers} layers" if config.layers else "all its layers"
    base = "the base beside this file" if "base_inside" in content else f"`{config.base}`"
    adapter = "One LoRA" if config.adapter.experts is None else f"{len(config.adapter.experts)} LoRA experts"
    prompts = config.prompts
    parts = [
        f"# UniMoER for {' and '.join(tasks)}",
        f"{adapter} on {base} ({layers}, frozen, fingerprint {content['base_fingerprint']}), made by unimoer "
        f"{__version__}. Queries are cut to {prompts.max_query_tokens} tokens, documents to "
        f"{prompts.max_document_tokens}. Loading computes golden outputs again and refuses a difference.",
        "## Use",
        _USE + (_EMBED if Task.EMBEDDING in tasks else "") + (_RERANK if Task.RERANKING in tasks else "") + "```",
    ]
    if spec is not None and run is not None:
        if spec.train is not None:
            parts += ["## Trained on", *_data(spec.train.data)]
        if table := _scores(run):
            parts += ["## Scores", table]
    return "\n\n".join(parts) + "\n"


def _data(data: DataConfig) -> list[str]:
    lines = []
    for name, domain in data.trained.items():
        embedded = DOMAINS.get(domain.source.removeprefix("embedded:"))
        lines.append(f"- {name}: {embedded.notes if embedded is not None else f'`{domain.source}`'}")
    return [
        "\n".join(lines),
        "Of other kinds of text it may be worse than BM25: measure it on yours before you use it.",
    ]


def _scores(run: Path) -> str:
    """A table of the run's evaluations at its end, beside BM25's of the same study; empty where there are none."""
    found: dict[tuple[str, str, int, int], dict[str, float]] = {}
    for folder, system in [*((path, BM25) for path in sorted(run.parent.glob(f"{BM25}-s*"))), (run, "")]:
        for path in sorted(folder.glob(f"eval/*/{FINAL}/*/*/metrics.json")):
            summary = read_record(EvaluationSummary, path)
            column = _COLUMNS.get((system, Measure(path.parent.name)))
            if column is not None and _METRIC in summary.metrics:
                row = (summary.suite, summary.dataset, summary.queries, summary.documents)
                found.setdefault(row, {})[column] = summary.metrics[_METRIC]
    rows = {row: scores for row, scores in found.items() if scores.keys() - {"BM25"}}
    columns = [name for name in _COLUMNS.values() if any(name in scores for scores in rows.values())]
    if not rows:
        return ""
    lines = [
        f"nDCG@10, one trained model; reranking orders what its first stage found.\n\n| suite | collection | queries | "
        f"documents | {' | '.join(columns)} |",
        "|---|---|---:|---:|" + "---:|" * len(columns),
    ]
    for (suite, name, queries, documents), scores in sorted(rows.items()):
        cells = [f"{scores[column]:.3f}" if column in scores else "" for column in columns]
        lines.append(f"| {suite} | {name} | {queries:,} | {documents:,} | {' | '.join(cells)} |")
    return "\n".join(lines)
