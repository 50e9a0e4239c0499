"""Writes complete synthetic study folders from the schema's models: a kill gate, a comparison of arms, a budget curve.

Numbers are invented, seeded, and of the shape and size that real studies have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimoer.schema import (
    Cell,
    Decision,
    Declaration,
    Environment,
    Plan,
    Results,
    RunStatus,
    TaskDecision,
    write_record,
)
from unimoer.schema.decision import PLAIN, Conflicts, LayerConflict, Lead, Method, Needed, Ratio, Region, Useful
from unimoer.schema.plan import Amendment, ArmPlan, CollectionPlan, Criterion, DomainPlan, PlannedRun, SuitePlan
from unimoer.schema.results import (
    ArmCosts,
    ArmResult,
    ArmTask,
    Ceilings,
    OverallArm,
    Point,
    Points,
    Provenance,
    Ranking,
    Recovered,
    Recovery,
    RouterSummary,
    RoutingSummary,
    RunResult,
    SystemScore,
    TaskRecovery,
    TaskRouting,
    TaskScores,
)
from unimoer.schema.run import Hardware, ServingCosts, TrainingSummary
from unimoer.types import Task

SEEDS = (42, 123, 456, 789, 1024)
COLLECTIONS = ("attack", "code", "cwe", "hpo")
BASE = {
    Task.EMBEDDING: {"bm25": 0.585, "random": 0.021, "untrained": 0.168, "specialist": 0.612},
    Task.RERANKING: {"bm25": 0.585, "random": 0.241, "untrained": 0.232, "specialist": 0.641},
}
SPECIALISTS = {Task.EMBEDDING: "emb_only", Task.RERANKING: "rank_only"}
EXPERTS = ("embedding", "reranking", "shared")


def cell(mean: float, width: float, seeds: Sequence[int] = SEEDS) -> Cell:
    """A mean with an interval of this half width."""
    per_seed = {str(seed): mean + width * 0.4 * np.sin(seed).item() for seed in seeds}
    return Cell(
        mean=mean,
        std=0.3 * width if len(seeds) > 1 else None,
        ci95=(mean - width, mean + width),
        per_seed=per_seed,
    )


def region(low: float, high: float, criterion: Criterion) -> Region:
    fail, passes = criterion.fail_below, criterion.pass_at
    if low >= passes:
        return "above_pass"
    if high < fail:
        return "below_fail"
    if low >= fail:
        return "between" if high < passes else "straddles_pass"
    return "straddles_fail" if high < passes else "straddles_both"


def task_decision(
    task: Task,
    tir: float,
    width: float,
    seeds: Sequence[int],
    useful: bool,
    ok: bool = True,
    level: float = 1.0,
    family: bool = True,
) -> TaskDecision:
    base = {name: level * value for name, value in BASE[task].items()}
    specialist = base["specialist"] if useful else base["bm25"] - 0.05
    if not ok:
        specialist = base["untrained"] + 0.004
    joint = specialist * (1 - tir / 100)
    criterion = Criterion()
    where = region(tir - width, tir + width, criterion)
    claim = {
        Task.EMBEDDING: "the embedding specialist reaches BM25",
        Task.RERANKING: "the reranking specialist improves the order it is given",
    }[task]
    p = 0.004 if abs(tir) > width else 0.31
    return TaskDecision(
        specialist=cell(specialist, 0.03, seeds),
        joint=cell(joint, 0.03, seeds),
        untrained=cell(base["untrained"], 0.02, seeds),
        bm25=cell(base["bm25"], 0.03, seeds[:1]),
        random=cell(base["random"], 0.01, seeds[:1]),
        tir=Ratio(
            **cell(tir, width, seeds).model_dump(),
            region=where,
            over="seeds and queries" if len(seeds) > 1 else "queries",
            mde=1.4 * width,
            needed=Needed(queries=4200, seeds=None) if where.startswith("straddles") else None,
        ),
        difference=cell(specialist - joint, specialist * width / 100, seeds),
        gain=cell(specialist - base["untrained"], 0.03, seeds),
        useful=Useful(claim=claim, difference=cell(specialist - base["bm25"], 0.02, seeds), ok=useful and ok),
        p_value=p,
        p_models=p / 4,
        p_holm=2 * p if family else None,
        p_bonferroni=2 * p if family else None,
        status="ok" if ok else "underpowered",
        queries=200 if level == 1.0 else 50,
    )


def decision(
    tir: Mapping[Task, float],
    width: float,
    seeds: Sequence[int],
    useful: bool = True,
    ok: bool = True,
    collections: Sequence[str] = COLLECTIONS,
    criterion: Criterion | None = None,
    amendments: Sequence[Amendment] = (),
    name: str = "kill-gate",
) -> Decision:
    criterion = criterion or Criterion()
    tasks = {task: task_decision(task, tir[task], width, seeds, useful, ok) for task in Task}
    regions = {found.tir.region for found in tasks.values()}
    supported: Any = "inconclusive"
    if "above_pass" in regions:
        supported = "pass"
    elif regions == {"below_fail"}:
        supported = "fail"
    worst = max(tir.values())
    verdict: Any = "PASS" if worst >= criterion.pass_at else "FAIL" if worst < criterion.fail_below else "MARGINAL"
    reasons = [*(["one seed of at least three"] if len(seeds) == 1 else [])]
    return Decision(
        study="kill-gate",
        name=name,
        verdict=verdict,
        supported=supported,
        plain=PLAIN[supported],
        useful=useful and ok,
        preliminary=bool(reasons),
        preliminary_reasons=reasons,
        criterion=criterion,
        frozen="f" * 64,
        time="2025-05-01T10:00:00+00:00",
        amendments=list(amendments),
        seeds=list(seeds),
        budget="per_task",
        tasks=tasks,
        datasets={
            collection: {
                task: task_decision(
                    task,
                    tir[task] + 3 * np.cos(index + len(task)).item(),
                    2.2 * width,
                    seeds,
                    useful,
                    ok,
                    0.8 + 0.05 * index,
                )
                for task in Task
            }
            for index, collection in enumerate(collections)
        },
        gradient_conflicts=Conflicts(
            mean_cosine=0.011,
            mean_cosine_corrected=0.05,
            null_cosine=0.002,
            negative_share=0.44,
            reliability_embedding=0.31,
            reliability_reranking=0.12,
            noise_ceiling=0.193,
            magnitude_similarity=0.7,
            measurements=240,
            steps=20,
            by_layer=[LayerConflict(layer=layer, mean_cosine=0.002 * layer, measurements=20) for layer in range(12)],
        ),
        method=Method(
            interval="95% over seeds and queries",
            over="seeds and queries" if len(seeds) > 1 else "queries",
            test="Sign flips over queries within seeds",
            families={"primary": 2, "exploratory": 2 * len(collections)},
        ),
    )


def arm_plan(tasks: Sequence[Task], **changes: Any) -> ArmPlan:
    values: dict[str, Any] = {"adapter_parameters": 1_100_000, "layers": 12, "steps": dict.fromkeys(tasks, 44)}
    return ArmPlan(tasks=list(tasks), **{**values, **changes})


GATE_ARMS = {
    "emb_only": arm_plan([Task.EMBEDDING]),
    "rank_only": arm_plan([Task.RERANKING]),
    "joint_single": arm_plan(list(Task)),
}
ROUTED = {
    "experts": dict.fromkeys(EXPERTS, 8),
    "granularity": "sequence",
    "reads_text": True,
    "router_parameters": 9000,
}
MORE_ARMS = {
    "hard_switch": arm_plan(list(Task), router="hard", told_task=True, experts={"embedding": 8, "reranking": 8}),
    "moe": arm_plan(list(Task), router="sparsegen", learned=True, **ROUTED),
    "moe_start": arm_plan(list(Task), router="sparsegen", null_of="moe", **ROUTED),
    "prior_fixed": arm_plan(list(Task), router="task_prior", learned=True, task_prior=1.0, **ROUTED),
    "rank_wise_token": arm_plan(list(Task), router="smear", learned=True, rank_wise=True, experts={"shared": 24}),
}
TIRS = {"hard_switch": 1.0, "moe": 2.0, "moe_start": 5.5, "prior_fixed": 4.0, "rank_wise_token": 6.0}


def status(arm: str, seed: int, variant: str = "") -> RunStatus:
    training = TrainingSummary(
        steps=88,
        tokens=250_000,
        tokens_per_second=1210.4,
        padding_waste=0.071,
        train_seconds=211.0,
        peak_memory_mb=2311.0,
        trainable_parameters=1_100_000,
    )
    return RunStatus(
        state="done", arm=arm, seed=seed, variant=variant, training=training, eval_seconds=61.0, peak_memory_mb=2500.0
    )


def scores(
    arms: Mapping[str, Mapping[Task, float]], collections: Sequence[str], seeds: Sequence[int]
) -> dict[Task, TaskScores]:
    """References, and the arms' scores on average."""
    found = {}
    for task in Task:
        means = {name: BASE[task][name] for name in ("bm25", "random", "untrained")}
        means |= {arm: by_task[task] for arm, by_task in arms.items() if task in by_task}

        def system(mean: float, queries: int) -> SystemScore:
            metrics = {"ndcg@10": mean, "mrr@10": 0.9 * mean, "recall@100": min(1.0, 1.3 * mean)}
            return SystemScore(score=cell(mean, 0.03, seeds), metrics=metrics, queries=queries)

        found[task] = TaskScores(
            macro={name: system(mean, 200) for name, mean in means.items()},
            datasets={
                collection: {
                    name: system(mean * (0.85 + 0.1 * index / len(collections)), 50) for name, mean in means.items()
                }
                for index, collection in enumerate(collections)
            },
        )
    return found


def plan(
    study: str,
    arms: Mapping[str, Mapping[str, ArmPlan]],
    seeds: Sequence[int],
    collections: Sequence[str],
    amendments: Sequence[Amendment] = (),
) -> Plan:
    runs = [
        PlannedRun(arm=arm, seed=seed, folder=f"{variant}{arm}-s{seed}-0123abcd", variant=variant)
        for variant, by_arm in arms.items()
        for arm in by_arm
        for seed in seeds
    ]
    suite = SuitePlan(
        collections={
            name: CollectionPlan(
                source="embedded",
                split="test",
                documents=1000 + index,
                queries=50,
                fingerprint=f"{index:064d}",
                seen=10 * (index % 2),
                relevant=60,
                distractors=700,
                notes="HPO licence" if name == "hpo" else "",
            )
            for index, name in enumerate(collections)
        },
        first_stage="bm25",
        depth=20,
    )
    domain = DomainPlan(source="embedded", documents=900, queries=300, fingerprint="a" * 64, held_out=40)
    return Plan(
        name=study,
        commands=[f"unimoer run {study} --set 'seeds=[42, 123]'"],
        declared=Declaration(
            study=study,
            criterion=Criterion(),
            budget="per_task",
            seeds=list(seeds),
            arms={variant: dict(by_arm) for variant, by_arm in arms.items()},
            families={"primary": ["embedding", "reranking"]},
            training={},
            domains=dict.fromkeys(collections[:4], domain),
            suite="main",
            suites={"main": suite},
        ),
        frozen="f" * 64,
        time="2025-05-01T10:00:00+00:00",
        amendments=list(amendments),
        runs=runs,
    )


def results(study: Plan, sections: Sequence[str], **fields: Any) -> Results:
    first = next(iter(study.declared.arms))
    arms = study.declared.arms[first]
    serving = ServingCosts(
        weights_mb=310, embedding_ms=12.3, embedding_ms_p95=18.1, reranking_ms=141.0, reranking_ms_p95=190.2
    )
    costs = ArmCosts(
        train_seconds=211.0,
        tokens_per_second=1210.0,
        eval_seconds=61.0,
        peak_memory_mb=2500.0,
        trainable_parameters=1_100_000,
        parameters_to_joint=0.8,
        serving=serving,
    )
    environment = Environment(
        git_commit="0123456789abcdef0123456789abcdef01234567",
        git_dirty=False,
        packages={"torch": "2.13.0", "transformers": "5.1.0"},
        python="3.12.1",
        hardware=Hardware(cpu="Example CPU @ 2.0 GHz", cores=2, memory_gb=15.6),
        data={"hpo": "sha256:abc"},
    )
    values: dict[str, Any] = {
        "study": study.declared.study,
        "name": study.name,
        "sections": list(sections),
        "plan": study,
        "suite": "main",
        "criterion": study.declared.criterion,
        "arms": {
            arm: ArmResult(
                plan=arms[arm],
                costs=costs,
                runs=len(study.declared.seeds),
                moved=None if arms[arm].router is None else 0.0 if arm == "prior_fixed" else 0.3,
            )
            for arm in arms
        },
        "runs": [
            RunResult(folder=run.folder, status=status(run.arm, run.seed, run.variant), key="0123abcd")
            for run in study.runs
        ],
        "provenance": Provenance(
            environment=environment,
            base={"": "b" * 16},
            settings={"layers": "12 of 30", "learning_rate": "0.003", "dtype": "bfloat16"},
            first_run="2025-05-01T10:00:00+00:00",
            last_run="2025-05-01T12:00:00+00:00",
        ),
    }
    return Results(**{**values, **fields})


def write_study(folder: Path, found: Results, decided: Decision | None = None, logs: bool = True) -> Path:
    write_record(folder / "results.json", found)
    write_record(folder / "plan.json", found.plan)
    if decided is not None:
        write_record(folder / "decision.json", decided)
    if logs:
        for run in found.runs:
            write_logs(folder / "runs" / run.folder, found.arms[run.status.arm].plan, run.status.seed)
    return folder


def write_logs(folder: Path, arm: ArmPlan, seed: int) -> None:
    """Losses with a jump where mined negatives begin, and, of joint runs, gradients of 12 layers at 20 steps."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(44):
        for task in arm.tasks:
            hard = task == Task.RERANKING and step >= 22
            loss = 1.4 * np.exp(-step / 12) + 0.3 + 0.6 * hard + 0.08 * generator.normal()
            lines.append(
                {
                    "step": step,
                    "task": task,
                    "task_step": step,
                    "domain": "hpo",
                    "loss": loss,
                    "hard": hard,
                    "extra": 1.0,
                }
            )
    _write_lines(folder / "metrics.jsonl", lines)
    if len(arm.tasks) > 1 and arm.router is None:
        conflicts = [
            {
                "step": step,
                "layer": layer,
                "domain": "hpo",
                "cosine": 0.02 * generator.normal() + 0.001 * layer,
                "null_cosine": 0.02 * generator.normal(),
                "reliability_embedding": 0.3 + 0.05 * generator.normal(),
                "reliability_reranking": 0.1 + 0.08 * generator.normal(),
            }
            for step in range(0, 88, 4)
            for layer in range(12)
        ]
        _write_lines(folder / "gradient_conflicts.jsonl", conflicts)


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


GATE_SECTIONS = ("verdict", "scores", "conflicts", "training", "other_suites", "runs", "data", "provenance")


def gate(
    folder: Path,
    embedding: float = 1.5,
    reranking: float = 0.2,
    width: float = 2.5,
    seeds: Sequence[int] = SEEDS,
    collections: Sequence[str] = COLLECTIONS,
    useful: bool = True,
    ok: bool = True,
    logs: bool = True,
    sections: Sequence[str] = GATE_SECTIONS,
) -> Path:
    tir = {Task.EMBEDDING: embedding, Task.RERANKING: reranking}
    decided = decision(tir, width, seeds, useful, ok, collections)
    arms = {SPECIALISTS[task]: {task: decided.tasks[task].specialist.mean or 0.0} for task in Task}
    arms["joint_single"] = {task: decided.tasks[task].joint.mean or 0.0 for task in Task}
    table = scores(arms, collections, seeds)
    found = results(
        plan("kill-gate", {"": GATE_ARMS}, seeds, collections),
        sections,
        scores={"": table},
        other_suites={"beir": scores(arms, ["nfcorpus", "scifact"], seeds)},
        ceilings=Ceilings(
            macro={"recall": 0.87, "ndcg@10": 0.88},
            datasets={name: {"recall": 0.86, "ndcg@10": 0.87} for name in collections},
        ),
    )
    return write_study(folder, found, decided, logs)


def amended_gate(folder: Path) -> Path:
    """A finished gate whose criterion was moved afterwards."""
    gate(folder, embedding=4.0, width=1.0)
    change = Amendment(time="2025-06-02T09:30:00+00:00", changes=["criterion.pass_at: 2 -> 7"])
    tir = {Task.EMBEDDING: 4.0, Task.RERANKING: 0.2}
    later = decision(tir, 1.0, SEEDS, criterion=Criterion(pass_at=7.0), amendments=[change])
    write_record(folder / "decision-2.json", later)
    return folder


def routing(folder: Path, seeds: Sequence[int] = SEEDS) -> Path:
    """Five arms beside the shared LoRA: fixed, learned, its untrained start, one that did not move, routed ranks."""
    planned = {**GATE_ARMS, **MORE_ARMS}
    tir = {Task.EMBEDDING: 6.0, Task.RERANKING: 3.0}
    decided = decision(tir, 1.8, seeds, name="routing")
    means = {SPECIALISTS[task]: {task: BASE[task]["specialist"]} for task in Task}
    means["joint_single"] = {task: BASE[task]["specialist"] * (1 - tir[task] / 100) for task in Task}
    for arm, loss in TIRS.items():
        means[arm] = {task: BASE[task]["specialist"] * (1 - (loss + len(task) - 9) / 100) for task in Task}
    order = sorted(["joint_single", *TIRS], key=lambda arm: -sum(means[arm].values()))
    started = {"moe", "prior_fixed", "rank_wise_token"}

    def arm_task(arm: str, task: Task, scale: float = 1.0) -> ArmTask:
        specialist, shared, mean = (scale * means[name][task] for name in (SPECIALISTS[task], "joint_single", arm))
        own = arm != "joint_single"
        recovered = 100 * (mean - shared) / (specialist - shared)
        return ArmTask(
            score=cell(mean, 0.03, seeds),
            tir=cell(100 * (specialist - mean) / specialist, 2.0, seeds),
            difference=cell(mean - shared, 0.011, seeds),
            to_start=cell(0.018, 0.012, seeds) if arm in started else None,
            recovery=Recovered(mean=recovered, ci95=(recovered - 45, recovered + 40))
            if own
            else Recovered(reason="it is the baseline"),
            p_value=0.01 if own else None,
            p_holm=0.04 if arm in ("moe", "hard_switch") else 0.4 if own else None,
            mde=0.014 if own else None,
        )

    recovery = Recovery(
        baseline="joint_single",
        families={"primary": 10, "exploratory": 40},
        tasks={
            task: TaskRecovery(
                lost=cell(means[SPECIALISTS[task]][task] - means["joint_single"][task], 0.012, seeds),
                arms={arm: arm_task(arm, task) for arm in order},
                ranking=Ranking(order=order, confidence=0.95),
            )
            for task in Task
        },
        datasets={
            name: {task: {arm: arm_task(arm, task, 0.9) for arm in order} for task in Task} for name in COLLECTIONS
        },
        arms={
            arm: OverallArm(
                tir=cell(TIRS.get(arm, 4.5), 1.5, seeds),
                difference=cell(4.5 - TIRS.get(arm, 4.5), 1.6, seeds),
                to_start=cell(3.0, 1.5, seeds) if arm in started else None,
            )
            for arm in order
        },
        ranking=Ranking(
            order=order,
            lead=Lead(arm=order[0], rival="joint_single", mean=3.5, ci95=(1.2, 5.8)),
            not_told_apart=["moe"],
            confidence=0.99,
            learned=Lead(arm="moe", rival="hard_switch", mean=-1.0, ci95=(-3.0, 1.1)),
        ),
    )
    found = results(
        plan("routing", {"": planned}, seeds, COLLECTIONS),
        ["verdict", "arms", "routing", "scores", "conflicts", "training", "runs", "data", "provenance"],
        scores={"": scores(means, COLLECTIONS, seeds)},
        recovery=recovery,
        routing={
            "moe": routing_summary(EXPERTS, 3, seeds, 0.6, 0.04),
            "moe_start": routing_summary(EXPERTS, 3, seeds, 0.02, 0.02),
            "prior_fixed": routing_summary(EXPERTS, 3, seeds, 0.3, 0.3),
            "rank_wise_token": routing_summary((), 24, seeds, 0.05, 0.01),
        },
    )
    return write_study(folder, found, decided)


def routing_summary(
    experts: Sequence[str], units: int, seeds: Sequence[int], bits: float, start: float
) -> RoutingSummary:
    def weights(task: Task, layer: int) -> list[float]:
        own = 1 / units + bits * (0.4 + 0.02 * layer)
        rest = (1 - own) / max(1, units - 1)
        return [own if name == task else rest for name in experts]

    routers = [
        RouterSummary(
            router=str(layer),
            layer=layer,
            experts=list(experts),
            units=units,
            mutual_information=bits * (0.6 + 0.07 * layer),
            of_mean_weights=bits * 0.2 * (0.6 + 0.07 * layer),
            within_task=0.03,
            at_start=start,
            tasks={
                task: TaskRouting(
                    weights=weights(task, layer),
                    entropy=0.8,
                    active_experts=0.7 * units,
                    one_expert_share=0.1,
                    steps=(33, 44),
                )
                for task in Task
            },
        )
        for layer in range(12)
    ]
    return RoutingSummary(
        seeds=list(seeds),
        experts=list(experts),
        units=units,
        mutual_information=bits,
        within_task=0.03,
        at_start=start,
        routers=routers,
    )


STEPS = (50, 100, 200, 400, 800, 1600)


def curve(
    folder: Path, seeds: Sequence[int] = SEEDS[:3], x: str = "steps", arms: Sequence[str] = ("joint_single", "moe")
) -> Path:
    """A study without a decision: specialists, one LoRA and an arm over numbers of steps."""
    planned = {arm: {**GATE_ARMS, **MORE_ARMS}[arm] for arm in ("emb_only", "rank_only", *arms)}
    points, last = [], {}
    for task in Task:
        for index, steps in enumerate(STEPS):
            specialist = BASE[task]["specialist"] * (0.6 + 0.4 * index / 5)
            for arm in (SPECIALISTS[task], *arms):
                tir = 0.0 if arm in SPECIALISTS.values() else 25 * 0.5**index - (1.5 if arm == "moe" else 0)
                mean = specialist * (1 - tir / 100)
                last.setdefault(arm, {})[task] = mean
                points.append(
                    Point(
                        variant="",
                        arm=arm,
                        step=steps,
                        task=task,
                        x={"steps": steps},
                        seeds=list(seeds),
                        score=cell(mean, 0.03, seeds),
                        tir=None if arm in SPECIALISTS.values() else cell(tir, 3.0, seeds),
                        recovery=Recovered(mean=40.0, ci95=(-10.0, 95.0)) if arm == "moe" else None,
                        to_bm25=cell(mean - BASE[task]["bm25"], 0.03, seeds),
                        mde=None if arm in SPECIALISTS.values() else 4.2,
                    )
                )
    found = results(
        plan("budget", {"": planned}, seeds, COLLECTIONS),
        ["verdict", "points", "scores", "arms", "training", "runs", "data", "provenance"],
        scores={"": scores(last, COLLECTIONS, seeds)},
        points=Points(x=x, points=points),
    )
    return write_study(folder, found)


def variants(folder: Path, seeds: Sequence[int] = SEEDS[:3]) -> Path:
    """A grid: ranks by numbers of experts, each a variant of its own; `trainable` follows from both."""
    grid = {f"rank{rank}-experts{experts}": (rank, experts) for rank in (4, 8, 16) for experts in (2, 3)}
    planned = {
        name: {arm: {**GATE_ARMS, **MORE_ARMS}[arm] for arm in ("emb_only", "rank_only", "moe")} for name in grid
    }
    points = [
        Point(
            variant=name,
            arm=arm,
            task=task,
            x={"rank": rank, "experts": experts, "trainable": 10_000.0 * rank * experts},
            seeds=list(seeds),
            score=cell(BASE[task]["specialist"] - 0.4 / rank, 0.03, seeds),
            tir=cell(8 / experts - 0.1 * rank, 2.0, seeds) if arm == "moe" else None,
            mde=2.5 if arm == "moe" else None,
        )
        for name, (rank, experts) in grid.items()
        for task in Task
        for arm in (SPECIALISTS[task], "moe")
    ]
    means = {arm: dict.fromkeys(Task, 0.5) for arm in ("moe",)} | {SPECIALISTS[task]: {task: 0.55} for task in Task}
    found = results(
        plan("ablation", planned, seeds, COLLECTIONS),
        ["points", "scores", "runs", "data", "provenance"],
        scores={name: scores(means, COLLECTIONS, seeds) for name in grid},
        points=Points(x="rank", points=points),
    )
    return write_study(folder, found, logs=False)


STUDIES: Mapping[str, Callable[[Path], Path]] = {
    "inconclusive": gate,
    "pass": lambda folder: gate(folder, embedding=9.0),
    "fail": lambda folder: gate(folder, embedding=0.1, reranking=-0.2, width=0.5),
    "gains": lambda folder: gate(folder, embedding=-8.0, reranking=-9.0),
    "one_seed": lambda folder: gate(
        folder, embedding=9.0, seeds=SEEDS[:1], sections=[*GATE_SECTIONS[:1], *GATE_SECTIONS[1:]]
    ),
    "useless": lambda folder: gate(folder, useful=False),
    "underpowered": lambda folder: gate(folder, ok=False),
    "wild": lambda folder: gate(folder, embedding=-25.0, reranking=60.0, width=30.0),
    "one_collection": lambda folder: gate(folder, collections=["hpo"]),
    "many_collections": lambda folder: gate(
        folder,
        collections=["scifact", "nfcorpus", "trec-covid", "fiqa", "arguana", "dbpedia-entity", "webis-touche2020"],
    ),
    "no_logs": lambda folder: gate(folder, logs=False),
    "amended": amended_gate,
    "routing": routing,
    "curve": curve,
    "grid": variants,
}
