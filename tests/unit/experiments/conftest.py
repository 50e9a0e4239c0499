"""A synthetic experiment folder: the files that a finished kill gate leaves behind, without training anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

METRICS = ("ndcg@10", "map", "mrr@10", "recall@100")
DOMAINS = {
    "attack": ("documents seen in training", "ATT&CK terms of use"),
    "cwe": ("documents seen in training", "CWE terms of use"),
    "hpo": ("documents unseen in training", "HPO licence"),
    "code": ("documents unseen in training", "BSD and Apache-2.0"),
}
BOTH = ("embedding", "reranking")
TRAINED = ("emb_only", "rank_only", "joint_single")
ARM_TASKS = {
    "emb_only": ("embedding",),
    "rank_only": ("reranking",),
    "joint_single": ("embedding", "reranking"),
    "untrained": ("embedding", "reranking"),
    "bm25": ("embedding", "reranking"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "emb_only": {"mode": "emb_only"},
    "rank_only": {"mode": "rank_only"},
    "joint_single": {"mode": "joint_single"},
    "joint_moe": {"router": "sparsegen", "granularity": "sequence"},
    "moe_token": {"router": "softmax", "granularity": "token"},
    "random_frozen": {"router": "random_frozen", "granularity": "sequence"},
    "hard_switch": {"router": "hard", "experts": {"embedding": 8, "reranking": 8}},
    "rank_wise": {"router": "topk", "granularity": "sequence", "experts": {"shared": 16}},
    "uniform": {"router": "uniform"},
    "pcgrad": {"mode": "joint_mixed", "gradients": "pcgrad"},
}
"""Arms that `write_experiment` can add, as `plan.json` describes them; routed unless they say otherwise."""
SPLIT = {"joint_moe": 1.8, "moe_token": 0.3, "random_frozen": 0.1, "rank_wise": 0.8}
"""Arms that log their routing, and how far their routers part the tasks."""
CEILING = {"attack": 0.81, "cwe": 0.77, "hpo": 0.66, "code": 0.9}


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_experiment(
    folder: Path,
    tir: Mapping[str, float] | None = None,
    gain: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (42,),
    domains: Mapping[str, tuple[str, str]] | None = None,
    queries: int = 60,
    noise: float = 0.06,
    layers: int = 12,
    conflicts: bool = True,
    arms: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Write an experiment whose specialists gain about `gain` nDCG@10 and whose joint arm loses about `tir` percent.

    Scores are made of a query's hardness, which all arms share, and of noise of their own (`noise`). `arms` adds arms
    for both tasks, each with its TIR by task.
    """
    arms = arms or {}
    tir = {"embedding": 3.0, "reranking": 0.4} | dict(tir or {})
    gain = {"embedding": 0.42, "reranking": 0.21} | dict(gain or {})
    domains = domains or DOMAINS
    base = {"embedding": 0.24, "reranking": 0.31}
    runs = [(arm, seed) for arm in ("emb_only", "rank_only", "joint_single", *arms, "untrained") for seed in seeds]
    entries = []
    for arm, seed in [*runs, ("bm25", 0)]:
        name = f"{arm}-s{seed}-{abs(seed * 7919 + len(arm)):08x}"
        entries.append({"arm": arm, "seed": seed, "folder": name})
        run = folder / "runs" / name
        for task in ARM_TASKS.get(arm, BOTH):
            for position, domain in enumerate(domains):
                level = base[task]
                if arm == "bm25":
                    level += 0.15
                elif arm != "untrained":
                    level += gain[task]
                    lost = tir if arm == "joint_single" else arms.get(arm, {})
                    level *= 1 - lost.get(task, 0.0) / 100 * (1 + 0.3 * math.cos(position))
                _evaluation(run, domain, task, arm, seed, level, queries, noise)
        _run_files(run, arm, seed, list(domains), layers, conflicts)
    write_object(
        folder / "plan.json",
        {
            "name": "kill-gate",
            "tier": "quick" if len(seeds) == 1 else "full",
            "seeds": list(seeds),
            "arms": ["emb_only", "rank_only", "joint_single", *arms],
            **({"arm_settings": {arm: _settings(arm) for arm in (*TRAINED, *arms)}} if arms else {}),
            "budget": "per_task",
            "command": "unimoer run kill-gate --quick",
            "criterion": {"metric": "ndcg@10", "pass": 2.0, "fail": 1.0},
            "rerank_depth": 20,
            "runs": entries,
            "datasets": {
                name: {
                    "source": f"embedded:{name}",
                    "documents": 839,
                    "train_queries": 1200,
                    "queries": queries,
                    "overlap": overlap,
                    "notes": f"made for tests; {licence}",
                    "sha256": f"{sum(name.encode()):064x}",
                }
                for name, (overlap, licence) in domains.items()
            },
            "bootstrap": 10_000,
        },
    )
    return folder


def _evaluation(
    run: Path, domain: str, task: str, arm: str, seed: int, level: float, queries: int, noise: float
) -> None:
    shared = np.random.default_rng([sum(domain.encode()), len(task)])
    hardness = shared.normal(0, 0.22, queries) + shared.normal(0, 0.05)
    own = np.random.default_rng([sum(domain.encode()), len(task), sum(arm.encode()), seed])
    ndcg = np.clip(level + hardness + own.normal(0, noise, queries) + own.normal(0, 0.004), 0, 1)
    if task == "reranking":
        ndcg = np.minimum(ndcg, np.where(shared.random(queries) < 0.9, 1.0, 0.4))
    lines = [
        {
            "query_id": f"{domain}-{number}",
            "ndcg@10": float(value),
            "map": float(value * 0.9),
            "mrr@10": float(value * 0.95),
            "recall@100": float(min(1, value + 0.2)),
        }
        for number, value in enumerate(ndcg)
    ]
    folder = run / "eval" / domain / task
    write_lines(folder / "per_query.jsonl", lines)
    means = {metric: math.fsum(line[metric] for line in lines) / len(lines) for metric in METRICS}
    found: dict[str, Any] = {"dataset": domain, "task": task, "arm": arm, "seed": seed, "queries": queries}
    found |= {"documents": 839, "metrics": means}
    if task == "reranking":
        ceiling = CEILING.get(domain, 0.8)
        found |= {"ceiling": {"recall": ceiling, "ndcg@10": ceiling + 0.03}, "depth": 20}
    write_object(folder / "metrics.json", found)
    (folder / "run.trec").write_text("", "utf-8")


def _run_files(run: Path, arm: str, seed: int, domains: list[str], layers: int, conflicts: bool) -> None:
    status: dict[str, Any] = {"state": "done", "arm": arm, "seed": seed, "eval_seconds": 21.4}
    if arm in ("untrained", "bm25"):
        write_object(run / "status.json", status)
        return
    joint = arm not in ("emb_only", "rank_only")
    steps = 160 if joint else 80
    tokens = steps * 1900
    status |= {
        "train_seconds": 118.2 if not joint else 231.9,
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": 1311.0 - 40 * joint,
        "padding_waste": 0.071,
        "peak_memory_mb": 1893.0 + 210 * joint,
        "trainable_parameters": 1_105_920,
    }
    write_object(run / "status.json", status)
    run.joinpath("config.yaml").write_text(
        f"seed: {seed}\nmode: {arm}\nadapter:\n  rank: 8\n  targets: [q, k, v, o, gate, up, down]\n", "utf-8"
    )
    write_object(
        run / "env.json",
        {
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "git_dirty": False,
            "config_hash": f"{sum(run.name.encode()):08x}",
            "packages": {"torch": "2.13.0", "transformers": "5.2.0", "numpy": "2.4.6", "unimoer": "0.1.0"},
            "hardware": {"cpu": "Example CPU @ 2.0 GHz", "cores": 2, "memory_gb": 15.6, "device": "cpu"},
            "seed": seed,
            "data": {name: f"sha256:{sum(name.encode()):064x}" for name in domains},
            "time": "2025-01-01T12:00:00Z",
        },
    )
    generator = np.random.default_rng([seed, len(arm)])
    lines, done = [], dict.fromkeys(("embedding", "reranking"), 0)
    for step in range(1, steps + 1):
        tasks = ARM_TASKS.get(arm, BOTH)
        task = tasks[(step - 1) % len(tasks)]
        done[task] += 1
        start, end = (3.2, 0.35) if task == "embedding" else (1.38, 0.55)
        loss = end + (start - end) * math.exp(-done[task] / 22) + generator.normal(0, 0.09)
        lines.append(
            {
                "step": step,
                "task": task,
                "task_step": done[task],
                "domain": domains[step % len(domains)],
                "loss": max(loss, 0.02),
                "lr": 3e-3 * min(1, step / 10),
                "grad_norm": 0.8,
                "tokens": 1900,
                "padding": 140,
                "seconds": 1.45,
            }
        )
    write_lines(run / "metrics.jsonl", lines)
    if arm in SPLIT:
        write_lines(run / "routing.jsonl", routing_lines(arm, seed, steps, layers))
    if arm == "joint_single" and conflicts:
        write_lines(run / "gradient_conflicts.jsonl", _conflict_lines(generator, steps, layers))


def _settings(arm: str) -> dict[str, Any]:
    routed = {"mode": "joint_moe", "experts": {"embedding": 4, "reranking": 4, "shared": 7}}
    plain = {"router": None, "granularity": None, "experts": {"shared": 16}}
    known = SETTINGS[arm]
    return {
        "gradients": "sum",
        "adapter_parameters": 1_105_920,
        "router_parameters": 1728 * 12 if arm in SPLIT else 0,
        "steps": dict.fromkeys(ARM_TASKS.get(arm, BOTH), 80),
        "granularity": None,
        **(routed if known.get("router") else plain),
        **known,
    }


def routing_lines(arm: str, seed: int, steps: int, layers: int) -> list[dict[str, Any]]:
    """Weights that leave the uniform ones for those of their task, more so in higher layers."""
    lines = []
    units = 16 if arm == "rank_wise" else 3
    generator = np.random.default_rng([seed, units])
    for step in range(1, steps + 1, 10):
        for task in BOTH:
            for layer in range(layers):
                logits = generator.normal(0, 0.05, units)
                logits[0 if task == "embedding" else 1] += 2 * SPLIT[arm] * step / steps * layer / max(1, layers - 1)
                weights = np.exp(logits) / np.exp(logits).sum()
                if arm == "rank_wise":
                    weights[np.argsort(weights)[:8]] = 0.0
                shares = weights[weights > 0]
                lines.append(
                    {
                        "step": step + (task == "reranking"),
                        "task": task,
                        "router": str(layer),
                        "experts": ["shared"] if arm == "rank_wise" else ["embedding", "reranking", "shared"],
                        "weights": weights.tolist(),
                        "entropy": float(-(shares * np.log(shares)).sum() / math.log(units)),
                        "active_experts": float(len(shares)),
                        "one_expert_share": 0.0,
                    }
                )
    return lines


def _conflict_lines(generator: np.random.Generator, steps: int, layers: int) -> list[dict[str, Any]]:
    lines = []
    for step in range(10, steps + 1, 10):
        for layer in range(layers):
            reliable = 0.55 - 0.3 * step / steps + 0.1 * math.sin(layer)
            cosine = 0.12 - 0.3 * layer / layers * step / steps + generator.normal(0, 0.03)
            first, second = reliable + generator.normal(0, 0.05), reliable * 0.7 + generator.normal(0, 0.05)
            ceiling = math.sqrt(max(first, 0) * max(second, 0))
            lines.append(
                {
                    "step": step,
                    "layer": layer,
                    "cosine": cosine,
                    "cosine_corrected": max(-1.0, min(1.0, cosine / ceiling)) if ceiling > 0.05 else None,
                    "reliability_embedding": first,
                    "reliability_reranking": second,
                    "norm_embedding": 1.1,
                    "norm_reranking": 0.7,
                    "magnitude_ratio": 1.57,
                    "magnitude_similarity": 0.9,
                }
            )
    return lines


@pytest.fixture(name="write_experiment")
def write_experiment_fixture(tmp_path: Path) -> Callable[..., Path]:
    """`write_experiment` into a folder of the test's own."""

    def write(**options: Any) -> Path:
        return write_experiment(tmp_path / "experiment", **options)

    return write
