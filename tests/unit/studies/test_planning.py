"""Which runs a study has, what names them, and what its plan says about them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from unimoer.config import BUILTIN, RunSpec, StudyConfig, TrainingConfig
from unimoer.errors import UserError
from unimoer.runs.data import _training_data
from unimoer.schema import Declaration, read_record, write_record
from unimoer.studies import STUDIES, find_study
from unimoer.studies.freeze import differences
from unimoer.studies.planning import Planned, declaration_hash, plan_study, train_spec
from unimoer.types import Task

Make = Callable[..., dict[str, Any]]
YES_NO = {"pooling": "last", "head": "yes_no"}
ROUTER = {"type": "softmax"}


def planned(content: dict[str, Any]) -> Planned:
    config = tiny.parsed(content)
    study = STUDIES["kill-gate"]
    return plan_study(config, study.name, study.families(config, ["kitchen"]), tiny.CPU)


def key(config: StudyConfig, arm: str = "joint_single", seed: int = 1) -> str:
    return train_spec(config, arm, seed, tiny.CPU).key


def test_references_come_first_then_seed_by_seed(experiment: Make) -> None:
    runs = planned(experiment(seeds=[5, 6])).runs
    assert [(run.arm, run.seed) for run in runs] == [
        ("bm25", 0),
        ("random", 0),
        ("untrained", 5),
        ("untrained", 6),
        *((arm, seed) for seed in (5, 6) for arm in ("emb_only", "rank_only", "joint_single")),
    ]
    assert len({run.folder for run in runs}) == len(runs)


def test_every_run_is_evaluated_on_what_it_was_trained_for(experiment: Make) -> None:
    runs = {(run.arm, run.seed): run for run in planned(experiment(seeds=[5, 6])).runs}
    assert runs["bm25", 0].tasks == runs["untrained", 5].tasks == runs["joint_single", 6].tasks == tuple(Task)
    assert runs["emb_only", 5].tasks == (Task.EMBEDDING,)
    assert runs["rank_only", 5].tasks == (Task.RERANKING,)
    # An untrained adapter embeds the same for every seed; the untrained head is another for each.
    assert runs["untrained", 6].tasks == (Task.RERANKING,)
    assert runs["bm25", 0].train is None and runs["bm25", 0].model is None
    assert runs["untrained", 5].train is None and runs["untrained", 5].model is not None


@pytest.mark.parametrize(("head", "seeds"), [({"pooling": "last", "head": "mlp"}, [5, 6]), (YES_NO, [5])])
def test_only_a_head_that_starts_at_random_needs_an_untrained_run_for_each_seed(
    head: dict[str, Any], seeds: list[int], experiment: Make
) -> None:
    runs = planned(experiment(seeds=[5, 6], model__reranking=head)).runs
    assert [run.seed for run in runs if run.arm == "untrained"] == seeds


def test_a_specification_travels(experiment: Make) -> None:
    """It is plain data: pickled, or as JSON, it is the same run."""
    arms = ["emb_only", "rank_only", "joint_single", "joint_moe"]
    for run in planned(experiment(arms=arms, model__adapter={"rank": 12})).runs:
        assert pickle.loads(pickle.dumps(run)) == run  # noqa: S301
        assert RunSpec.model_validate_json(run.model_dump_json()) == run


CHANGES: list[tuple[str, Any]] = [
    ("model__layers", 2),
    ("model__adapter__rank", 2),
    ("model__prompts__instruction", "other"),
    ("model__dtype", "bfloat16"),
    ("data__domains__kitchen__queries", 5),
    ("data__negatives__percent", 0.5),
    ("training__embedding__steps", 7),
    ("training__optimizer__lr", 0.5),
    ("training__optimizer__accumulation", 2),
    ("training__ranking_weight", 0.5),
    ("training__embedding__gradcache_rows", 4),
    ("model__embedding__attention", "bidirectional"),
    ("budget", "total"),
]


@pytest.mark.parametrize(("dotted", "value"), CHANGES)
def test_the_training_key_changes_with_what_changes_a_weight(experiment: Make, dotted: str, value: Any) -> None:
    assert key(tiny.parsed(experiment())) != key(tiny.parsed(experiment(**{dotted: value})))


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("training__checkpoint_every", 77),
        ("training__routing_every", 7),
        ("training__probe__every", 1),
        ("evaluation__latency_requests", 0),
        ("evaluation__batch_tokens", 128),
        ("evaluation__suites__test__rerank_depth", 3),
        ("evaluation__suites__test__queries", 3),
        ("evaluation__suites__more", {"collections": {}}),
        ("name", "other"),
        ("seeds", [1, 2, 3]),
        ("arms", ["emb_only"]),
        ("criterion__pass_at", 5.0),
        ("trackers", ["tensorboard"]),
        ("training__staged__stage1_lr", 0.5),
    ],
)
def test_the_training_key_stays_with_what_does_not(experiment: Make, dotted: str, value: Any) -> None:
    """Adding a suite, another depth or a denser probe trains nothing again."""
    assert key(tiny.parsed(experiment())) == key(tiny.parsed(experiment(**{dotted: value})))


def test_precision_and_device_are_part_of_a_run(experiment: Make) -> None:
    """What began in float32 on a CPU must not go on in bfloat16 on a GPU."""
    spec = train_spec(tiny.parsed(experiment()), "emb_only", 1, tiny.CPU)
    assert (spec.dtype, spec.device) == ("float32", "cpu")
    other = {
        spec.model_copy(update=change).key for change in ({"dtype": "bfloat16"}, {"device": "cuda"}, {"base": "x"})
    }
    assert len(other | {spec.key}) == 4


def test_a_setting_that_is_added_later_leaves_finished_runs_what_they_are(experiment: Make) -> None:
    class LaterTraining(TrainingConfig):
        novelty: int = 3

    spec = train_spec(tiny.parsed(experiment()), "emb_only", 1, tiny.CPU)
    found = [
        spec.model_copy(update={"training": LaterTraining(**spec.training.model_dump(), **more)}).key
        for more in ({}, {"novelty": 3}, {"novelty": 4})
    ]
    assert found[0] == found[1] == spec.key
    assert found[2] != spec.key


def test_arms_and_seeds_are_told_apart_and_the_key_is_the_same_tomorrow(experiment: Make) -> None:
    config = tiny.parsed(experiment(model__adapter={"rank": 12, "alpha": 12.0}))
    keys = {key(config, arm, seed) for arm in BUILTIN for seed in (1, 2)}
    assert len(keys) == 2 * len(BUILTIN)
    assert all(len(digest) == 8 and int(digest, 16) >= 0 for digest in keys)
    again = tiny.parsed(experiment(model__adapter={"rank": 12, "alpha": 12.0}))
    assert key(again, "emb_only", 1) in keys


def test_the_definition_of_an_arm_is_part_of_its_runs(experiment: Make) -> None:
    def mine(**changes: Any) -> str:
        arm: dict[str, Any] = {"experts": {"embedding": 1, "reranking": 1, "shared": 2}, "router": ROUTER}
        content = experiment(model__adapter={"rank": 12}, custom_arms={"mine": {**arm, **changes}}, arms=["mine"])
        return key(tiny.parsed(content), "mine")

    changes: list[dict[str, Any]] = [
        {},
        {"router": {"type": "uniform"}},
        {"router": {"type": "softmax", "granularity": "token"}},
        {"router": {"type": "softmax", "frozen": True}},
        {"experts": {"embedding": 1, "reranking": 1, "shared": 1}},
        {"schedule": "mixed"},
        {"set": {"training.optimizer.lr": 0.1}},
    ]
    assert len({mine(**change) for change in changes}) == len(changes)
    assert mine(router={"type": "softmax", "granularity": "sequence"}) == mine()


def test_an_evaluation_key_changes_with_what_changes_a_score(experiment: Make) -> None:
    def score_key(**changes: Any) -> str:
        run = next(run for run in planned(experiment(**changes)).runs if run.arm == "emb_only")
        assert run.train is not None
        return run.suites[0].key(run.key, run.train.model)

    first = score_key()
    assert score_key(evaluation__batch_tokens=128) == first
    assert score_key(evaluation__suites__test__rerank_depth=3) != first
    assert score_key(evaluation__suites__test__queries=3) != first
    assert score_key(evaluation__suites__test__first_stage="dense") != first


def test_the_plan_counts_what_training_has_shown(experiment: Make) -> None:
    content = experiment()
    del content["data"]["domains"]["garden"]
    declared = planned(content).declared
    collections = declared.suites["test"].collections
    assert (collections["kitchen"].seen, collections["kitchen"].relevant) == (8, 8)
    assert collections["kitchen"].overlap == "100% of the relevant documents seen in training"
    assert (collections["garden"].seen, collections["garden"].distractors) == (0, 22)
    assert collections["garden"].overlap == "relevant documents unseen in training"
    assert declared.domains.keys() == {"kitchen"}
    assert declared.domains["kitchen"].queries == 60
    assert declared.arms[""]["joint_single"].steps == {Task.EMBEDDING: 6, Task.RERANKING: 6}
    assert declared.arms[""]["rank_only"].steps == {Task.RERANKING: 6}
    assert len(declaration_hash(declared)) == 64


def test_overlap_is_counted_by_content_not_by_name(experiment: Make, data: dict[str, Path], tmp_path: Path) -> None:
    """One data set has several names: a link, a relative path, `cwe` for `embedded:cwe`."""
    (tmp_path / "linked").symlink_to(data["kitchen"])
    content = experiment()
    content["data"]["domains"]["kitchen"]["source"] = str(tmp_path / "linked")
    found = planned(content).declared.suites["test"].collections["kitchen"]
    assert (found.seen, found.relevant, found.distractors) == (8, 8, 0)


@pytest.mark.parametrize("setting", ["split_identifiers", "instruction", "ignore_identical_ids"])
def test_what_changes_scores_of_a_collection_is_declared(setting: str, experiment: Make) -> None:
    content = experiment()
    before = planned(content).declared
    value = "find it" if setting == "instruction" else True
    content["evaluation"]["suites"]["test"]["collections"]["kitchen"][setting] = value
    after = planned(content).declared
    assert list(differences(before, after)) == [
        f"suites.test.collections.kitchen.{setting}: {None if setting == 'instruction' else False} -> {value}"
    ]
    content = experiment(evaluation__suites__test__first_stage_weight=0.5)
    assert list(differences(before, planned(content).declared)) == ["suites.test.first_stage_weight: None -> 0.5"]


def test_variants_repeat_the_arms_under_other_settings(experiment: Make) -> None:
    content = experiment(variants={"d2": {"model.layers": 2}, "d3": {"model.layers": 3}})
    plan = planned(content)
    assert list(plan.declared.arms) == ["d2", "d3"]
    assert [plan.declared.arms[name]["joint_single"].layers for name in ("d2", "d3")] == [2, 3]
    # References without a model are the same at every point; everything else has its own.
    assert [run.variant for run in plan.runs if run.arm in ("bm25", "random")] == ["", ""]
    assert [run.variant for run in plan.runs if run.arm == "untrained"] == ["d2", "d3"]
    assert len({run.folder for run in plan.runs if run.arm == "joint_single"}) == 2


def test_points_with_other_data_are_declared_beside_each_other(experiment: Make) -> None:
    """And what a test shows of any of them is counted."""
    content = experiment(variants={"few": {"data.domains.kitchen.queries": 4}, "all": {}})
    declared = planned(content).declared
    assert {name: domain.queries for name, domain in declared.domains.items()} == {
        "kitchen": 4,
        "garden": 60,
        "all:kitchen": 60,
    }
    assert declared.suites["test"].collections["kitchen"].seen == 8


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a": {"model.layres": 2}}, "variant 'a': model.layres: unknown key; did you mean 'layers'?"),
        ({"a": {"seeds": [1]}}, "variants: a: 'seeds' is the same for all points of a study"),
        ({"a b": {}}, "variants: 'a b': letters, digits, points and dashes only"),
    ],
)
def test_a_wrong_variant_is_one_line(variants: dict[str, Any], message: str, experiment: Make) -> None:
    with pytest.raises(UserError) as caught:
        planned(experiment(variants=variants))
    assert message in str(caught.value)


def test_a_learned_router_brings_its_own_start(experiment: Make) -> None:
    """At no extra typing, and in the plan's families."""
    content = experiment(
        arms=["emb_only", "rank_only", "joint_single", "joint_moe", "hard_switch"], model__adapter={"rank": 12}
    )
    config = STUDIES["experiment1"].prepare(tiny.parsed(content))
    assert config.arms[-1] == "joint_moe_start"
    assert config.arm("joint_moe_start").router == config.arm("joint_moe").router.model_copy(update={"frozen": True})
    with pytest.raises(ValueError, match="the routing of 'hard_switch' is not learned"):
        config.arm("hard_switch_start")
    plan = plan_study(config, "experiment1", {}, tiny.CPU).declared.arms[""]
    assert plan["joint_moe_start"].null_of == "joint_moe"
    assert (plan["joint_moe"].learned, plan["joint_moe_start"].learned) == (True, False)
    sizes = {plan[arm].adapter_parameters + plan[arm].router_parameters for arm in ("joint_moe", "joint_moe_start")}
    assert len(sizes) == 1, "the null has the size of what it is the null of"


def test_a_misspelt_study_is_named_with_the_nearest(experiment: Make) -> None:
    with pytest.raises(UserError, match="no study 'kil-gate'; did you mean 'kill-gate'"):
        find_study("kil-gate")


def test_the_verdict_needs_its_three_arms(experiment: Make) -> None:
    config = tiny.parsed(experiment(arms=["emb_only", "joint_single"]))
    with pytest.raises(UserError, match=r"arms: the verdict compares .* 'rank_only' is not among them"):
        STUDIES["kill-gate"].prepare(config)


CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_study_has_its_two_configurations(study: Any) -> None:
    for name in (study.config, study.quick):
        assert (CONFIGS / f"{name}.yaml").is_file(), name


def test_the_suite_that_decides_is_the_first_of_the_configuration_on_disk_too(experiment: Make, tmp_path: Path) -> None:
    """And arms stay in their order: a file whose keys are sorted would have neither."""
    content = experiment(arms=["rank_only", "joint_single", "emb_only"])
    content["evaluation"]["suites"]["also"] = content["evaluation"]["suites"]["test"]
    declared = planned(content).declared
    write_record(tmp_path / "declared.json", declared)
    found = read_record(Declaration, tmp_path / "declared.json")
    assert (found.suite, list(found.suites)) == ("test", ["test", "also"])
    assert list(found.arms[""]) == ["rank_only", "joint_single", "emb_only"]
    content["evaluation"]["suites"] = dict(reversed(content["evaluation"]["suites"].items()))
    assert list(differences(declared, planned(content).declared)) == ["suite: test -> also"]


def test_other_training_data_under_the_same_name_is_another_run(
    experiment: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    """A configuration names a folder, not what is in it."""
    moving = shutil.copytree(data["kitchen"], tmp_path / "kitchen")
    config = tiny.parsed(experiment(data__domains={"kitchen": {"source": str(moving)}}))
    before = key(config)
    assert key(config) == before
    corpus = moving / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("kettle", "teapot"))
    # As a new process would.
    _training_data.cache_clear()
    assert key(config) != before


def test_whole_searches_leave_the_other_scores_what_they_are(experiment: Make) -> None:
    first, second = (
        next(run for run in planned(experiment(evaluation__suites__test__whole_search=whole)).runs if run.train)
        for whole in (False, True)
    )
    assert first.train is not None
    model = first.train.model
    assert first.suites[0].key(first.key, model) == second.suites[0].key(second.key, model)


def test_experiment_1_needs_something_to_compare(experiment: Make) -> None:
    with pytest.raises(UserError, match="arms: experiment1 compares other joint arms with joint_single; add some"):
        STUDIES["experiment1"].prepare(tiny.parsed(experiment()))
