"""Which runs an experiment has, and what its plan says about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
from unimoer.data.prepare import prepare
from unimoer.experiments.plan import describe, describe_arms, overlap, plan_runs
from unimoer.types import Task, TrainingMode

Make = Callable[..., dict[str, Any]]
YES_NO = {"pooling": "last", "head": "yes_no"}


def test_references_come_first_then_seed_by_seed(experiment: Make) -> None:
    runs = plan_runs(tiny.parsed(experiment(seeds=[5, 6])))
    assert [(run.arm, run.seed) for run in runs] == [
        ("bm25", 0),
        ("untrained", 5),
        ("untrained", 6),
        *((arm, seed) for seed in (5, 6) for arm in ("emb_only", "rank_only", "joint_single")),
    ]
    assert len({run.folder for run in runs}) == len(runs)


def test_every_run_is_evaluated_on_what_it_was_trained_for(experiment: Make) -> None:
    runs = {(run.arm, run.seed): run for run in plan_runs(tiny.parsed(experiment(seeds=[5, 6])))}
    assert runs["bm25", 0].tasks == runs["untrained", 5].tasks == runs["joint_single", 6].tasks == tuple(Task)
    assert runs["emb_only", 5].tasks == (Task.EMBEDDING,)
    assert runs["rank_only", 5].tasks == (Task.RERANKING,)
    # An untrained adapter embeds the same for every seed; the untrained head is another for each.
    assert runs["untrained", 6].tasks == (Task.RERANKING,)
    assert runs["bm25", 0].mode is None
    assert runs["untrained", 5].mode is None
    assert runs["joint_single", 5].mode is TrainingMode.JOINT_SINGLE


def test_every_learned_head_starts_at_random(experiment: Make) -> None:
    runs = plan_runs(tiny.parsed(experiment(seeds=[5, 6], model__reranking={"pooling": "last", "head": "mlp"})))
    assert [run.seed for run in runs if run.arm == "untrained"] == [5, 6]


def test_without_a_random_head_one_untrained_run_serves_all_seeds(experiment: Make) -> None:
    runs = plan_runs(tiny.parsed(experiment(seeds=[5, 6], model__reranking=YES_NO)))
    assert [run.seed for run in runs if run.arm == "untrained"] == [5]


def test_a_folder_is_named_by_arm_seed_and_configuration(experiment: Make) -> None:
    config = tiny.parsed(experiment())
    run = next(run for run in plan_runs(config) if run.arm == "joint_single")
    assert run.folder == f"joint_single-s1-{config.run_hash('joint_single', 1)}"
    longer = tiny.parsed(experiment(training__embedding__steps=7))
    assert not {r.folder for r in plan_runs(config)} & {r.folder for r in plan_runs(longer)}
    more = {r.folder for r in plan_runs(tiny.parsed(experiment(seeds=[1, 2])))}
    assert {r.folder for r in plan_runs(config)} <= more


def test_the_plan_counts_overlap_between_training_and_test(experiment: Make) -> None:
    config = tiny.parsed(experiment(data__domains__garden__train=False))
    domains = prepare(config.data, depth=8)
    plan = describe(config, plan_runs(config), domains, describe_arms(config), command="unimoer run kill-gate")
    assert plan["datasets"]["kitchen"]["overlap"] == "100% of the relevant test documents seen in training"
    assert overlap(domains["garden"]) == plan["datasets"]["garden"]["overlap"] == "not trained on"
    assert plan["datasets"]["kitchen"]["documents"] == 30
    assert plan["datasets"]["kitchen"]["train_queries"] == 60
    assert plan["datasets"]["kitchen"]["queries"] == 8
    assert plan["arm_settings"]["joint_single"]["steps"] == {"embedding": 6, "reranking": 6}
    assert plan["arm_settings"]["rank_only"]["steps"] == {"reranking": 6}
    assert plan["criterion"] == {"metric": "ndcg@10", "pass": 2.0, "fail": 1.0}
    assert plan["command"] == "unimoer run kill-gate"
    assert [run["folder"] for run in plan["runs"]] == [run.folder for run in plan_runs(config)]


def test_a_domain_for_training_only_is_in_no_table(experiment: Make) -> None:
    config = tiny.parsed(experiment(data__domains__garden__evaluate=False))
    plan = describe(config, plan_runs(config), prepare(config.data, depth=8), describe_arms(config), command="")
    assert plan["datasets"].keys() == {"kitchen"}
