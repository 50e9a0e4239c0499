"""Experiment folders with results, of every kind of outcome that a report has to put into words."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from unimoer.experiments.summary import write_results

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).parents[1] / "experiments" / "conftest.py")
assert _spec and _spec.loader
_synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_synthetic)

SEEDS = (42, 123, 456)
TWELVE = ["attack", "cwe", "hpo", "code", "scifact", "nfcorpus", "trec-covid", "fiqa", "arguana", "dbpedia-entity"]
TWELVE += ["webis-touche2020", "climate-fever"]
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "pass": {"tir": {"embedding": 9.0}, "seeds": SEEDS},
    "fail": {"tir": {"embedding": 0.3, "reranking": 0.1}, "seeds": SEEDS, "noise": 0.02},
    "marginal": {"tir": {"embedding": 1.5, "reranking": 0.5}, "seeds": SEEDS, "noise": 0.02},
    "negative": {"tir": {"embedding": -8.0, "reranking": -9.0}, "seeds": SEEDS},
    "one_seed": {"tir": {"embedding": 9.0}},
    "underpowered": {"gain": {"reranking": -0.01}, "seeds": SEEDS},
    "one_dataset": {"domains": {"hpo": ("documents unseen in training", "HPO licence")}},
    "twelve_datasets": {"domains": dict.fromkeys(TWELVE, ("unseen", "see source")), "seeds": SEEDS, "queries": 20},
    "wild": {"tir": {"embedding": -25.0, "reranking": 60.0}, "queries": 6, "noise": 0.3, "layers": 36},
    "no_logs": {"conflicts": False},
    "arms": {
        "tir": {"embedding": 6.0, "reranking": 4.0},
        "seeds": SEEDS,
        "noise": 0.03,
        "arms": {
            "joint_moe": {"embedding": 3.0, "reranking": 1.0},
            "moe_token": {"embedding": 4.0, "reranking": 5.0},
            "hard_switch": {"embedding": 1.0, "reranking": 2.5},
            "uniform": {"embedding": 6.5, "reranking": 3.5},
            "random_frozen": {"embedding": 7.0, "reranking": 30.0},
            "rank_wise": {"embedding": 5.0, "reranking": 4.0},
            "pcgrad": {"embedding": 6.0, "reranking": 3.0},
        },
    },
    "arms_lose": {
        "tir": {"embedding": -3.0, "reranking": -2.0},
        "arms": {"joint_moe": {"embedding": 4.0, "reranking": 5.0}, "uniform": {"embedding": 5.0, "reranking": 4.0}},
        "layers": 28,
    },
    "one_arm": {"arms": {"pcgrad": {"embedding": 3.0, "reranking": 0.4}}, "seeds": SEEDS},
}


@pytest.fixture(scope="session")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant by name, written once a session: tests that change files must copy it."""
    folders: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in folders:
            folder = _synthetic.write_experiment(tmp_path_factory.mktemp(variant) / "experiment", **VARIANTS[variant])
            if variant == "no_logs":
                for path in folder.glob("runs/*/metrics.jsonl"):
                    path.unlink()
            write_results(folder)
            folders[variant] = folder
        return folders[variant]

    return get
