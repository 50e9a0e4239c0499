"""Tables of the arms beside specialists and one shared LoRA, and of their routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimoer.report import wording
from unimoer.report.arms import arm_words
from unimoer.report.files import JOINT, SPECIALIST, Experiment
from unimoer.report.routing import routing_words
from unimoer.report.table import Cell, Table
from unimoer.types import Task

SIGNIFICANT = 0.05
SPECIALISTS = "Two specialists"
SHARED = "One shared LoRA"


def build_arm_tables(experiment: Experiment) -> list[Table]:
    """Nothing where `joint_single` is the only arm for both tasks."""
    if not experiment.recovery:
        return []
    return [
        arms_table(experiment),
        arm_costs_table(experiment),
        *(arm_scores_table(experiment, task) for task in Task),
        *(arm_datasets_table(experiment, task) for task in Task),
        *([routing_table(experiment)] if any(experiment.router(arm) for arm in experiment.extra_arms) else []),
    ]


def arms_table(experiment: Experiment) -> Table:
    """What each arm is and what it scores, from best to worst over both tasks."""
    metric = wording.metric_label(experiment.metric)
    overall = experiment.recovery["overall"]
    order = overall["ranking"]
    best = {task: max(order, key=lambda arm: _macro(experiment, task, arm)) for task in Task}
    rows = [_specialists_row(experiment)]
    for arm in order:
        costs = experiment.arm_details.get(arm, {}).get("costs", {})
        row = [
            Cell(_label(arm)),
            Cell(arm_words(experiment.settings(arm))),
            Cell(_sized(_parameters(costs), costs.get("parameters_to_joint"))),
        ]
        for task in Task:
            ratio = wording.percent(_tir(experiment, task, arm)["mean"], signed=True)
            row.append(Cell(f"{wording.score(_macro(experiment, task, arm))} ({ratio})", bold=arm == best[task]))
        row.append(Cell(wording.percent(overall["arms"][arm]["tir"]["mean"], signed=True), bold=arm == order[0]))
        rows.append(row)
    return Table(
        "arms",
        f"Arms for both tasks, by the mean of their two interference ratios on {metric}",
        [
            "Arm",
            "What it is",
            "Parameters",
            *(f"{task.capitalize()} (TIR)" for task in Task),
            "Mean TIR",
        ],
        rows,
        text_columns=2,
        rules=frozenset({1}),
        notes="Parameters: of adapter and routers, and how many percent more than those of the one shared LoRA. "
        f"Scores: {metric}, averaged over data sets, and what share of the specialist's is lost. Bold: the best of the "
        "arms for both tasks, which the intervals may not be able to tell from the next.",
    )


def arm_costs_table(experiment: Experiment) -> Table:
    """What each arm takes to train and to serve, in the same order."""
    everything = {arm: found.get("costs", {}) for arm, found in experiment.arm_details.items()}
    specialists = [everything.get(SPECIALIST[task], {}) for task in Task]
    rows = [_costs_row(SPECIALISTS, specialists)]
    rows += [_costs_row(_label(arm), [everything.get(arm, {})]) for arm in experiment.recovery["overall"]["ranking"]]
    return Table(
        "arm_costs",
        "What the arms cost",
        ["Arm", "Training, tokens/s", "Peak", "Served, weights", "Query, ms", "Query p95", "List, ms", "List p95"],
        rows,
        rules=frozenset({1}),
        notes="Means over seeds, but for the peak: the largest memory of any run, training and evaluation, which may "
        "include what runs before it have left; of two specialists the larger. Served: one LoRA is merged into the "
        "base, experts lie beside it. Two specialists are counted as two merged models; unmerged, they could share a "
        "base as the experts of a hard switch do. A query is embedded, or a query's whole candidate list scored, one "
        "request at a time and with its tokenisation, each timed at its second call: median and 95th percentile over "
        "the requests of a run, on the machine and beside the load of that time.",
    )


def _costs_row(label: str, arms: list[Mapping[str, Any]]) -> list[Cell]:
    """One arm, or the two specialists, each of which is asked for its own task."""
    serving = [arm.get("serving") or {} for arm in arms]
    speeds = [_count(arm["tokens_per_second"]) for arm in arms if arm.get("tokens_per_second") is not None]
    peaks = [arm["peak_memory_mb"] for arm in arms if arm.get("peak_memory_mb") is not None]
    weights = [found["weights_mb"] for found in serving if "weights_mb" in found]
    values = [
        label,
        " / ".join(speeds) or wording.MISSING,
        f"{max(peaks) / 1024:.2f} GiB" if peaks else wording.MISSING,
        f"{sum(weights):,.0f} MiB" if len(weights) == len(arms) else wording.MISSING,
    ]
    for task in Task:
        for key in (f"{task}_ms", f"{task}_ms_p95"):
            found = [costs[key] for costs in serving if key in costs]
            values.append(f"{found[0]:,.1f}" if found else wording.MISSING)
    return [Cell(value) for value in values]


def arm_scores_table(experiment: Experiment, task: Task) -> Table:
    """One task: every arm with its interval, against the specialist and against one shared LoRA."""
    found, metric = experiment.recovery["tasks"][task], wording.metric_label(experiment.metric)
    scores = experiment.results["scores"][task]["macro"]
    specialist, lost = scores[SPECIALIST[task]], found["lost"]
    rows = [
        [
            Cell(wording.arm_label(SPECIALIST[task])),
            Cell(_scored(specialist["mean"][experiment.metric], specialist["ci95"])),
            Cell(""),
            Cell(_scored(lost["mean"], lost["ci95"], signed=True)),
            Cell(wording.p_value(experiment.decision["tasks"][task]["p_holm"]) + "*"),
            Cell(""),
        ]
    ]
    for arm in found["ranking"]:
        ratio = _tir(experiment, task, arm)
        values = [
            _label(arm),
            _scored(_macro(experiment, task, arm), scores[arm]["ci95"]),
            _lost(ratio),
        ]
        if arm == JOINT:
            values += ["", "", ""]
        else:
            cell = found["arms"][arm]
            difference = cell["difference"]
            values.append(_scored(difference["mean"], difference["ci95"], signed=True))
            values += [wording.p_value(cell["p_holm"]), _recovered(cell["recovery"])]
        rows.append([Cell(value) for value in values])
    reasons = {cell["recovery"]["reason"] for cell in found["arms"].values()} - {None}
    notes = (
        "With 95% intervals. Difference: arm − one shared LoRA, paired by query and seed. p: against "
        f"the shared LoRA, Holm-corrected over all {experiment.recovery['families']['primary']} arms and tasks (* over "
        "the two specialists alone). Recovery: share of the specialist's lead over the shared LoRA that an arm wins "
        "back."
    )
    if reasons:
        notes += f" Recovery is not given: {', '.join(sorted(reasons))}."
    return Table(
        f"arms_{task}",
        f"{task.capitalize()}: arms against the specialist and one shared LoRA",
        ["Arm", metric, "TIR", "Difference", "p (Holm)", "Recovery"],
        rows,
        rules=frozenset({1}),
        notes=notes,
    )


def arm_datasets_table(experiment: Experiment, task: Task) -> Table:
    """Differences to one shared LoRA by data set."""
    found = experiment.recovery
    names = [name for name in experiment.datasets if task in found["datasets"].get(name, {})]
    by_dataset = [found["datasets"][name][task] for name in names]
    rows = [
        [
            Cell(wording.arm_label(SPECIALIST[task])),
            *(Cell(wording.score(one["lost"]["mean"], signed=True)) for one in by_dataset),
            Cell(wording.score(found["tasks"][task]["lost"]["mean"], signed=True)),
        ]
    ]
    for arm in found["tasks"][task]["ranking"]:
        if arm != JOINT:
            cells = [one["arms"][arm] for one in (*by_dataset, found["tasks"][task])]
            texts = [
                wording.score(cell["difference"]["mean"], signed=True) + ("†" if cell["p_holm"] < SIGNIFICANT else "")
                for cell in cells
            ]
            rows.append([Cell(arm), *(Cell(text) for text in texts)])
    return Table(
        f"arms_datasets_{task}",
        f"{task.capitalize()}: difference to one shared LoRA in {wording.metric_label(found['metric'])}, by data set",
        ["Arm", *names, "Average"],
        rows,
        rules=frozenset({1}),
        notes="† Holm-corrected p < 0.05; data sets are a family of "
        f"{found['families']['exploratory']}, the averages one of {found['families']['primary']}. The specialist's "
        "differences are tested in the table of interference.",
    )


def routing_table(experiment: Experiment) -> Table:
    """How each routed arm chooses its experts, over layers."""
    rows = []
    for arm in experiment.extra_arms:
        settings = experiment.settings(arm)
        found = experiment.routing.get(arm)
        if found is None:
            if experiment.router(arm):
                rows.append([Cell(arm), Cell(routing_words(settings)), *[Cell(wording.MISSING)] * 10])
            continue
        bits = [entry["mutual_information"]["mean"] for entry in found["routers"]]
        known = [value for value in bits if value is not None]
        values = [str(found["units"]), _two(found["mutual_information"])]
        values.append(f"{min(known):.2f} to {max(known):.2f}" if known else wording.MISSING)
        values += [_two(found.get("at_start")), _two(found["within_task"])]
        for key in ("entropy", "active_experts"):
            values += [_two(_over_layers(found, task, key)) for task in Task]
        alone = [_over_layers(found, task, "one_expert_share") for task in Task]
        values.append(" / ".join(wording.MISSING if one is None else f"{one:.0%}" for one in alone))
        rows.append([Cell(arm), Cell(routing_words(settings)), *(Cell(value) for value in values)])
    columns = [
        "Arm",
        "Routing",
        "Units",
        "Bits",
        "by layer",
        "at start",
        "noise",
        "Entropy, emb.",
        "rer.",
        "Active, emb.",
        "rer.",
        "Alone",
    ]
    return Table(
        "routing",
        "How the experts are chosen",
        columns,
        rows,
        text_columns=2,
        notes="Last quarter of training, mean over layers and seeds. Units: experts, or ranks where ranks are routed. "
        "Bits: mutual information between task and expert, 0 where both tasks are routed alike, 1 where they share "
        "none; at start: of the first batches, before anything was learned; noise: what two halves of one task's own "
        "batches give. Entropy: of a decision, 1 where all units weigh alike. Active: units of weight above 0. Alone: "
        "share of decisions with a single active unit, embedding / reranking.",
    )


def _specialists_row(experiment: Experiment) -> list[Cell]:
    """Two models, so their sizes add up."""
    costs = [experiment.arm_details.get(SPECIALIST[task], {}).get("costs", {}) for task in Task]
    sizes = [_parameters(one) for one in costs]
    size = None if None in sizes else sum(one for one in sizes if one is not None)
    joint = _parameters(experiment.arm_details.get(JOINT, {}).get("costs", {}))
    cells = [
        SPECIALISTS,
        "two LoRAs, one for each task",
        _sized(size, 100 * (size / joint - 1) if size and joint else None),
    ]
    cells += [wording.score(_macro(experiment, task, SPECIALIST[task])) for task in Task]
    return [Cell(text) for text in (*cells, "")]


def _label(arm: str) -> str:
    """The name that the configuration gives it, so that it can be found there."""
    return SHARED if arm == JOINT else arm


def _macro(experiment: Experiment, task: Task, arm: str) -> float:
    value: float = experiment.results["scores"][task]["macro"][arm]["mean"][experiment.metric]
    return value


def _tir(experiment: Experiment, task: Task, arm: str) -> Mapping[str, Any]:
    cells = experiment.decision["tasks"] if arm == JOINT else None
    found: Mapping[str, Any] = (cells[task] if cells else experiment.recovery["tasks"][task]["arms"][arm])["tir"]
    return found


def _parameters(costs: Mapping[str, Any]) -> int | None:
    if costs.get("adapter_parameters") is None:
        return costs.get("trainable_parameters")
    return int(costs["adapter_parameters"]) + int(costs.get("router_parameters") or 0)


def _over_layers(found: Mapping[str, Any], task: Task, key: str) -> float | None:
    values = [entry["tasks"][task][key] for entry in found["routers"] if task in entry["tasks"]]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _sized(parameters: int | None, more: float | None) -> str:
    """`1.13M (+1.9%)`."""
    if parameters is None:
        return wording.MISSING
    text = f"{parameters / 1e6:.2f}M" if parameters >= 1e6 else f"{parameters / 1e3:.1f}k"
    return text + (f" ({wording.percent(more, signed=True)})" if more else "")


def _lost(ratio: Mapping[str, Any]) -> str:
    interval = "" if ratio["ci95"][0] is None else f" {wording.bounds(ratio['ci95'], 1)}"
    return wording.percent(ratio["mean"], signed=True) + interval


def _scored(value: float | None, interval: list[float | None], signed: bool = False) -> str:
    return f"{wording.score(value, signed=signed)} {wording.bounds(interval)}"


def _recovered(recovery: Mapping[str, Any]) -> str:
    if recovery["mean"] is None:
        return wording.MISSING
    return f"{wording.percent(recovery['mean'], decimals=0)} {wording.bounds(recovery['ci95'], 0)}"


def _count(value: float | None) -> str:
    return wording.MISSING if value is None else f"{value:,.0f}"


def _two(value: float | None) -> str:
    return wording.MISSING if value is None else f"{value:.2f}"
