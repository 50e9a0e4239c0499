"""The tables of an experiment in Markdown: scores, what search is worth, milliseconds, memory."""

from __future__ import annotations

from collections.abc import Sequence

from unimoer.schema import Cell, RagResults
from unimoer.schema.rag import RagLatency, RagScores

NAMES = {
    "unified": "unified",
    "two_models": "two models",
    "bm25_only": "bm25 only",
    "no_retrieval": "no retrieval",
}
LABELS = {
    "exact_match": "exact match",
    "f1": "F1",
    "contains": "answer in the output",
    "answer_recall": "answer in the passages",
    "passage_recall": "right passages read",
}
STAGES = ("embed", "retrieve", "rerank", "generate", "total")
MISSING = "–"


def report(results: RagResults) -> str:
    """One Markdown page."""
    sets = list(results.plan.asked)
    parts = [
        f"# {results.name}: retrieval-augmented generation",
        _setting(results),
        "## Scores\n\nMeans over questions with 95% intervals over questions.",
    ]
    if len(sets) > 1:
        parts.append(_scores("average over sets", {key: one.macro for key, one in results.systems.items()}))
    parts += [_scores(name, {key: one.sets[name] for key, one in results.systems.items()}) for name in sets]
    if results.differences:
        parts.append("## Differences\n\nFirst less second, paired by question, averaged over sets.")
        parts.append(_differences(results))
    parts += ["## Milliseconds\n\nOf one question at a time: median, and 95th percentile.", _latency(results)]
    parts.append(
        "## Memory\n\nMiB: of all weights; of a fresh process before anything was loaded, loaded, and at most while it "
        "answered."
    )
    parts.append(_memory(results))
    return "\n\n".join(parts) + "\n"


def _setting(results: RagResults) -> str:
    """What was asked of whom, and where."""
    retrieval, costs = results.plan.config["retrieval"], next(iter(results.systems.values())).costs
    where, hardware = costs.environment, costs.environment.hardware
    asked = [f"{name} ({one.questions:,} of {one.passages:,} passages)" for name, one in results.plan.asked.items()]
    reranked = f"the best {retrieval['rerank']} reranked" if retrieval["rerank"] else "nothing reranked"
    return (
        f"`{results.command}`\n\nQuestions: {', '.join(asked)}. Search: {retrieval['retrieve']}, {reranked}, "
        f"{retrieval['passages']} read. Generator: {costs.models['generator']}. Commit "
        f"{(where.git_commit or 'unknown')[:7]}{', with changes' if where.git_dirty else ''}. {hardware.cpu}, "
        f"{hardware.cores} cores, {costs.threads} threads, {hardware.gpu or hardware.device}."
    )


def _scores(title: str, systems: dict[str, RagScores]) -> str:
    columns = [key for key in LABELS if any(key in one.measures for one in systems.values())]
    rows = [[NAMES[key], *(_interval(one.measures.get(column)) for column in columns)] for key, one in systems.items()]
    return f"**{title}**\n\n" + table(["system", *(LABELS[column] for column in columns)], rows)


def _differences(results: RagResults) -> str:
    columns = [key for key in LABELS if any(key in one.macro for one in results.differences)]
    rows = [
        [f"{NAMES[one.first]} − {NAMES[one.second]}", *(_interval(one.macro.get(key), signed=True) for key in columns)]
        for one in results.differences
    ]
    return table(["", *(LABELS[column] for column in columns)], rows)


def _latency(results: RagResults) -> str:
    rows = [
        [name, NAMES[key], *(_milliseconds(one.milliseconds[name].get(stage)) for stage in STAGES)]
        for name in results.plan.asked
        for key, one in results.systems.items()
    ]
    return table(["questions", "system", *STAGES], rows, words=2)


def _memory(results: RagResults) -> str:
    rows = [
        [NAMES[key], *(f"{value:,.0f}" for value in (cost.weights_mb, cost.runtime_mb, cost.loaded_mb, cost.peak_mb))]
        for key, cost in ((key, one.costs) for key, one in results.systems.items())
    ]
    return table(["system", "weights", "empty", "loaded", "peak"], rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first columns hold words, the others numbers."""
    align = [":--" if index < words else "--:" for index in range(len(columns))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, align, *rows))


def _interval(cell: Cell | None, *, signed: bool = False) -> str:
    if cell is None or cell.mean is None:
        return MISSING
    mean = _number(cell.mean, signed=signed)
    low, high = cell.ci95
    return mean if low is None or high is None else f"{mean} [{_number(low)}, {_number(high)}]"


def _number(value: float, *, signed: bool = False) -> str:
    text = f"{abs(value):.3f}"
    if float(text) == 0.0:
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def _milliseconds(latency: RagLatency | None) -> str:
    return MISSING if latency is None else f"{latency.median:,.0f} ({latency.p95:,.0f})"
