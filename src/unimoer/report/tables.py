"""The tables of a report: what stands in them, and the verdict as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from unimoer.files import write_text
from unimoer.report import wording
from unimoer.report.arm_tables import build_arm_tables
from unimoer.report.arms import arm_summary
from unimoer.report.files import BM25, JOINT, SPECIALIST, UNTRAINED, Experiment
from unimoer.report.table import Cell, Table
from unimoer.types import Task

SIGNIFICANT = 0.05


def build_tables(experiment: Experiment) -> list[Table]:
    """Every table of the report, in its order."""
    return [
        tir_table(experiment),
        *(scores_table(experiment, task) for task in Task),
        metrics_table(experiment),
        *build_arm_tables(experiment),
        datasets_table(experiment),
        runs_table(experiment),
        *([conflicts_table(experiment)] if experiment.decision["gradient_conflicts"] else []),
    ]


def write_tables(experiment: Experiment) -> list[Table]:
    """Write `tables/<name>.md` and `.tex` into the experiment's folder; returns the tables."""
    tables = build_tables(experiment)
    for table in tables:
        write_text(experiment.folder / "tables" / f"{table.name}.md", table.markdown())
        write_text(experiment.folder / "tables" / f"{table.name}.tex", table.latex())
    return tables


def scores_table(experiment: Experiment, task: Task) -> Table:
    """Arms as rows, data sets and their macro average as columns, on the criterion's metric."""
    metric, names = experiment.metric, experiment.datasets
    scores = experiment.results["scores"][task]
    names = [name for name in names if name in scores["datasets"]]
    order = [BM25, UNTRAINED, SPECIALIST[task], JOINT]
    present = {arm for found in scores["datasets"].values() for arm in found}
    arms = [arm for arm in order if arm in present] + sorted(present.difference(order))
    trained = [arm for arm in (SPECIALIST[task], JOINT) if arm in present]
    rows = []
    for arm in arms:
        cells = [Cell(wording.arm_label(arm))]
        for name in [*names, None]:
            found = scores["datasets"][name] if name else scores["macro"]
            verdicts = experiment.decision["datasets"].get(name, {}) if name else experiment.decision["tasks"]
            if arm not in found:
                cells.append(Cell(wording.MISSING))
                continue
            value = found[arm]["mean"][metric]
            text = wording.score(value)
            if arm == JOINT and verdicts.get(task, {}).get("p_holm", 1.0) < SIGNIFICANT:
                text += "†"
            if name is None:
                text += " " + wording.bounds(found[arm]["ci95"])
            best = arm in trained and value >= max(found[other]["mean"][metric] for other in trained if other in found)
            cells.append(Cell(text, bold=best))
        rows.append(cells)
    rules = {arms.index(SPECIALIST[task])} if SPECIALIST[task] in arms else set()
    ceilings = experiment.results["ceilings"]
    if task == Task.RERANKING and ceilings["datasets"]:
        rules.add(len(rows))
        for key, label in ((metric, "Ceiling: perfect order"), ("recall", "Candidate recall")):
            values = [ceilings["datasets"].get(name, {}).get(key) for name in names]
            average = ceilings["macro"].get(key)
            rows.append([Cell(label), *(Cell(wording.score(value)) for value in [*values, average])])
    caption = f"{task.capitalize()}: {wording.metric_label(metric)} by arm and data set"
    notes = (
        "Bold: the better of specialist and joint. † joint differs from the specialist (Holm-corrected "
        "p < 0.05; data sets are one family, the two averages another). Average: over data sets, with its 95% interval."
    )
    if task == Task.RERANKING and experiment.results.get("rerank_depth"):
        notes += f" Every arm reranks the same candidates ({experiment.results['rerank_depth']} a query from BM25)."
    return Table(f"scores_{task}", caption, ["", *names, "Average"], rows, rules=frozenset(rules), notes=notes)


def tir_table(experiment: Experiment) -> Table:
    """The interference ratio of each task, on average and by data set, with interval, p-values and guard."""
    rows: list[list[Cell]] = []
    rules = set()
    for task in Task:
        cells = [("Average", experiment.decision["tasks"][task])]
        cells += [
            (name, experiment.decision["datasets"][name][task])
            for name in experiment.datasets
            if task in experiment.decision["datasets"][name]
        ]
        rules.add(len(rows))
        for name, found in cells:
            average = name == "Average"
            values = [
                str(task) if average else "",
                name,
                wording.score(found["specialist"]["mean"]),
                wording.score(found["joint"]["mean"]),
                wording.score(found["gain"]["mean"], signed=True),
                wording.percent(found["tir"]["mean"], signed=True),
                wording.bounds(found["tir"]["ci95"], 1),
                *([wording.percent(found["tir"]["std"])] if len(experiment.seeds) > 1 else []),
                wording.p_value(found["p_value"]),
                wording.p_value(found["p_holm"]),
                found["status"],
            ]
            rows.append([Cell(value, bold=average) for value in values])
    columns = ["Task", "Data set", "Specialist", "Joint", "Gain", "TIR", "95% interval"]
    columns += [*(["SD, seeds"] if len(experiment.seeds) > 1 else []), "p", "p (Holm)", "Guard"]
    notes = (
        "TIR = (specialist − joint) / specialist; positive: the joint model is worse. Gain: specialist over the "
        "untrained base; the guard is ok where its 95% interval lies above 0. p: specialist against "
        "joint; Holm over the two averages, and over all pairs of task and data set."
    )
    if len(experiment.seeds) > 1:
        notes += " The interval covers seeds and queries."
    return Table(
        "tir",
        f"Task interference ratio on {wording.metric_label(experiment.metric)}",
        columns,
        rows,
        text_columns=2,
        rules=frozenset(rules - {0}),
        notes=notes,
    )


def metrics_table(experiment: Experiment) -> Table:
    """Macro averages of every metric, by task and arm, with the standard deviation over seeds."""
    rows: list[list[Cell]] = []
    rules: set[int] = set()
    metrics: set[str] = set()
    for task in Task:
        metrics.update(*(found["mean"] for found in experiment.results["scores"][task]["macro"].values()))
    order = sorted(metrics, key=lambda metric: (metric != experiment.metric, metric))
    for task in Task:
        macro = experiment.results["scores"][task]["macro"]
        rules.add(len(rows))
        arms = [arm for arm in (BM25, UNTRAINED, SPECIALIST[task], JOINT, *experiment.extra_arms) if arm in macro]
        for index, arm in enumerate(arms):
            cells = [Cell(str(task) if index == 0 else ""), Cell(wording.arm_label(arm))]
            for metric in order:
                spread = macro[arm]["std"].get(metric)
                text = wording.score(macro[arm]["mean"].get(metric))
                cells.append(Cell(text + (f" ±{spread:.3f}" if spread is not None else "")))
            rows.append(cells)
    return Table(
        "metrics",
        "All metrics, averaged over data sets",
        ["Task", "Arm", *(wording.metric_label(metric) for metric in order)],
        rows,
        text_columns=2,
        rules=frozenset(rules - {0}),
        notes="±: standard deviation over seeds." if len(experiment.seeds) > 1 else "",
    )


def datasets_table(experiment: Experiment) -> Table:
    """What was measured on: source, overlap with training, sizes; what no data set has stays out."""
    described = {name: experiment.results["datasets"][name] for name in experiment.datasets}
    words = [("source", "Source"), ("overlap", "Overlap with training"), ("licence", "Licence")]
    numbers = [("documents", "Documents"), ("train_queries", "Training queries"), ("queries", "Test queries")]
    words, numbers = (
        [(key, label) for key, label in group if any(found.get(key) is not None for found in described.values())]
        for group in (words, numbers)
    )
    rows = []
    for name, found in described.items():
        cells = [Cell(name), *(Cell(str(found.get(key) or wording.MISSING)) for key, _ in words)]
        cells += [Cell(wording.MISSING if found.get(key) is None else f"{found[key]:,}") for key, _ in numbers]
        rows.append(cells)
    return Table(
        "datasets",
        "Data sets of the evaluation",
        ["Data set", *(label for _, label in [*words, *numbers])],
        rows,
        text_columns=1 + len(words),
        notes=" ".join(f"{name}: {found['notes']}." for name, found in described.items() if found.get("notes")),
    )


def runs_table(experiment: Experiment) -> Table:
    """What each training run cost."""
    rows = []
    for run in experiment.results["runs"]:
        if run.get("train_seconds") is None:
            continue
        memory, waste, parameters = (
            run.get(key) for key in ("peak_memory_mb", "padding_waste", "trainable_parameters")
        )
        steps, speed = run.get("steps"), run.get("tokens_per_second")
        values = [
            wording.arm_label(run["arm"]),
            str(run["seed"]),
            wording.duration(run["train_seconds"]),
            wording.duration(run.get("eval_seconds")),
            wording.MISSING if steps is None else f"{steps:,}",
            wording.MISSING if speed is None else f"{speed:,.0f}",
            wording.MISSING if waste is None else wording.percent(100 * waste),
            wording.MISSING if memory is None else f"{memory / 1024:.2f} GiB",
            wording.MISSING if parameters is None else f"{parameters:,}",
        ]
        rows.append([Cell(value) for value in values])
    columns = ["Run", "Seed", "Training", "Evaluation", "Steps", "Tokens/s", "Padding", "Peak memory", "Trainable"]
    return Table("runs", "What the runs cost", columns, rows)


def conflicts_table(experiment: Experiment) -> Table:
    """Gradient conflict by layer, with the noise ceiling that it has to be read against."""
    conflicts = experiment.decision["gradient_conflicts"]
    rows = []
    for name, found in [("All", conflicts), *((str(entry["layer"]), entry) for entry in conflicts["by_layer"])]:
        values = [
            name,
            wording.score(found["mean_cosine"], signed=True),
            wording.percent(100 * found["negative_share"], decimals=0),
            wording.score(found["noise_ceiling"]),
            wording.score(found["mean_cosine_corrected"], signed=True),
            wording.score(found["magnitude_similarity"]),
        ]
        rows.append([Cell(value, bold=name == "All") for value in values])
    columns = ["Layer", "Cosine", "Negative", "Noise ceiling", "Corrected", "Magnitude similarity"]
    return Table("conflicts", "Gradient conflict by layer", columns, rows, rules=frozenset({1}))


def terminal_summary(decision: Mapping[str, Any], results: Mapping[str, Any]) -> RenderableType:
    """The verdict for the command line: a claim, one row a task, and what to read with it."""
    metric = wording.metric_label(decision["criterion"]["metric"])
    # No outer border: the table must fit a terminal of 80 columns.
    table = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title=f"{results.get('name') or 'experiment'}: {metric}, averaged over data sets; p: Holm-corrected",
        title_justify="left",
    )
    for column in ("task", "base", "specialist", "joint", "TIR %", "95% interval", "p", "guard"):
        table.add_column(column, justify="left" if column in ("task", "guard") else "right", no_wrap=True)
    for task in Task:
        found = decision["tasks"][task]
        ok = found["status"] == "ok"
        table.add_row(
            str(task),
            wording.score(found["untrained"]["mean"]),
            wording.score(found["specialist"]["mean"]),
            wording.score(found["joint"]["mean"]),
            Text(wording.percent(found["tir"]["mean"], signed=True).rstrip("%"), style="bold"),
            wording.bounds(found["tir"]["ci95"], 1),
            wording.p_value(found["p_holm"]),
            Text(found["status"], style="green" if ok else "yellow"),
        )
    colour = {"PASS": "magenta", "FAIL": "cyan", "MARGINAL": "yellow"}[decision["verdict"]]
    verdict = Text.assemble(
        (f" {decision['verdict']} ", f"bold reverse {colour}"),
        (" preliminary" if decision["preliminary"] else "", "yellow"),
        f"  {wording.headline(decision)}",
    )
    lines = [Text(wording.interval_sentence(decision))]
    lines += [Text(f"Preliminary: {reason}.", style="yellow") for reason in decision["preliminary_reasons"]]
    lines += [Text(f"\n{sentence}") for sentence in arm_summary(Experiment(Path(), decision, results))]
    return Group(table, Text(), verdict, *lines)
