"""Every checked-in configuration loads; every mistake is one line that names the file, the field and a way out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from unimoer.config import (
    BUILTIN,
    BCEConfig,
    GroupSoftmaxConfig,
    InfoNCEConfig,
    StudyConfig,
    load_config,
    parse_config,
)
from unimoer.errors import UserError
from unimoer.types import Task

CONFIGS = sorted(path for path in (Path(__file__).parents[3] / "configs").glob("*.yaml") if path.stem != "rag")
"""Of studies."""
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make() -> Make:
    """A whole configuration as plain data; its files need not exist."""

    def content(**changes: Any) -> dict[str, Any]:
        return tiny.experiment(Path("base"), {"kitchen": Path("data")}, **changes)

    return content


def refused(content: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(content, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message


def test_there_are_the_three_tiers() -> None:
    assert {"quick", "full", "qwen3_msmarco"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_checked_in_configuration_loads_and_survives_a_round_trip(path: Path) -> None:
    config = load_config(path)
    # The budget study's is named by what its models are.
    assert config.name.replace("-", "_").endswith(path.stem) or (config.name, path.stem) == ("budget", "converged")
    dumped = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    again = parse_config(yaml.safe_load(dumped), str(path))
    assert again == config


def test_the_tiers_are_those_of_the_issue() -> None:
    tiers = {path.stem: load_config(path) for path in CONFIGS}
    quick, full, qwen = tiers["quick"], tiers["full"], tiers["qwen3_msmarco"]
    assert (quick.model.adapter.rank, quick.seeds, len(quick.arms)) == (8, (42,), 3)
    assert (full.model.adapter.rank, full.seeds, len(full.arms)) == (16, (42, 123, 456, 789, 2026), 3)
    for config in (quick, full):
        assert config.model.base == "embedded:smollm2-135m"
        assert set(config.data.domains) == {"attack", "cwe", "hpo", "code"}
        assert config.evaluation.suites["test"].collections == "embedded"
    assert "Qwen3-0.6B-Base" in qwen.model.base
    assert (qwen.model.dtype, qwen.model.reranking.head, qwen.model.embedding.pooling) == ("bfloat16", "yes_no", "last")
    assert all(config.budget == "per_task" for config in tiers.values())


@pytest.mark.parametrize(
    ("dotted", "message"),
    [
        ("sedes", "sedes: unknown key; did you mean 'seeds'?"),
        ("model__padding_side", "model.padding_side: unknown key; did you mean 'padding'?"),
        ("model__adapter__rnak", "model.adapter.rnak: unknown key; did you mean 'rank'?"),
        ("model__prompts__max_query_token", "did you mean 'max_query_tokens'?"),
        ("data__domains__kitchen__querys", "data.domains.kitchen.querys: unknown key; did you mean 'queries'?"),
        ("data__negatives__percentage", "data.negatives.percentage: unknown key; did you mean 'percent'?"),
        ("training__embedding__batchsize", "training.embedding.batchsize: unknown key; did you mean 'batch_size'?"),
        ("training__embedding__loss__temprature", "did you mean 'temperature'?"),
        ("training__optimizer__learning_rate", "training.optimizer.learning_rate: unknown key; choose from"),
        ("evaluation__suites__test__rerank_deep", "rerank_deep: unknown key; did you mean 'rerank_depth'?"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_valid_one(make: Make, dotted: str, message: str) -> None:
    assert message in refused(make(**{dotted: 1}))


def test_a_misspelt_key_inside_a_chosen_loss_is_named_with_that_losss_keys(make: Make) -> None:
    content = make(training__reranking__loss={"type": "bce", "positive_wieght": 2.0})
    assert "positive_wieght: unknown key; did you mean 'positive_weight'?" in refused(content)


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("seeds", [], "seeds: "),
        ("seeds", [1, 1], "seeds: values must be distinct"),
        ("seeds", "one", "seeds: "),
        ("name", "My Experiment", "name: "),
        ("arms", ["joint"], "arms: unknown arm 'joint'; did you mean 'joint_moe'?"),
        ("budget", "half", "budget: "),
        ("model__layers", 0, "model.layers: input should be greater than or equal to 1, not 0"),
        ("model__dtype", "float16", "model.dtype: "),
        ("model__adapter__rank", "eight", "model.adapter.rank: input should be a valid integer"),
        ("model__adapter__dropout", 1.0, "model.adapter.dropout: input should be less than 1, not 1.0"),
        ("training__optimizer__lr", -1, "training.optimizer.lr: input should be greater than 0, not -1"),
        ("training__optimizer__lr", float("nan"), "training.optimizer.lr: "),
        ("training__embedding__steps", 2.5, "training.embedding.steps: "),
        (
            "training__reranking__loss",
            {"type": "hinge"},
            "training.reranking.loss.type: unknown 'hinge'; choose from bce",
        ),
        ("training__reranking__loss", {"temperature": 2.0}, "training.reranking.loss.type: required, but missing"),
        ("data__domains", {}, "data.domains: "),
        ("data__domains__kitchen__weight", 0, "data.domains.kitchen.weight: "),
        ("evaluation__suites", {}, "evaluation.suites: "),
        ("evaluation__suites", {"../up": {}}, "evaluation.suites"),
        ("criterion__pass_at", 0.5, "criterion: fail_below: 1 is above pass_at, 0.5"),
        ("data__negatives__strategy", "absolute", "data.negatives: strategy 'absolute' needs max_score"),
        ("model__reranking", {"head": "yes_no", "pooling": "mean"}, "model.reranking: head 'yes_no' reads"),
        ("trackers", ["mlflow"], "trackers.0: "),
        ("data__domains", {"../up": {"source": "x"}}, "data.domains"),
        ("data__domains", {"a/b": {"source": "x"}}, "data.domains"),
    ],
)
def test_a_wrong_value_is_named(make: Make, dotted: str, value: Any, message: str) -> None:
    assert message in refused(make(**{dotted: value}))


LISTS = {"head": "listwise", "pooling": "mean", "list_size": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training__reranking__loss": {"type": "listwise"}},
            "'listwise' reads the marks of head 'listwise', not 'lin",
        ),
        (
            {"model__reranking": LISTS, "training__reranking__loss": {"type": "bce"}},
            "training.reranking.loss: 'bce' needs a logit; head 'listwise' gives a cosine",
        ),
        (
            {
                "model__reranking": LISTS,
                "training__reranking__loss": {"type": "listwise"},
                "training__reranking__negatives": 3,
            },
            "training.reranking.negatives: 3 and a positive do not fit into one prompt of model.reranking.list_size 3",
        ),
        (
            {"model__reranking": LISTS, "model__prompts__candidates": "{query}{candidates}{query}{mark}"},
            "model: prompts: head 'listwise' needs {query}{mark} once before {candidates} and once after it",
        ),
        (
            {"model__reranking": LISTS, "model__prompts__candidates": "{mark}{candidates}{query}{mark}"},
            "model: prompts: head 'listwise' needs {query}{mark} once before {candidates} and once after it",
        ),
        (
            {"model__reranking": {**LISTS, "attention": "bidirectional"}},
            "model: reranking.attention: head 'listwise' needs causal",
        ),
        (
            {"model__reranking": {**LISTS, "head": "cosine", "pooling": "last"}},
            "model: reranking: head 'cosine' compares its vectors with those of embedding",
        ),
        (
            {"model__reranking": LISTS, "training__reranking__loss": {"type": "group_softmax"}},
            "at temperature 1 cannot tell apart; use type listwise, or a temperature such as 0.1",
        ),
        (
            {
                "model__reranking": {**LISTS, "head": "cosine"},
                "model__adapter": {
                    "experts": {"embedding": 2, "reranking": 2},
                    "router": {"type": "similarity"},
                },
            },
            "model: adapter.router: 'similarity' chooses an expert for a text; head 'cosine' reads lists",
        ),
    ],
    ids=str,
)
def test_a_head_that_reads_lists_has_its_needs(make: Make, changes: dict[str, Any], message: str) -> None:
    assert message in refused(make(**changes))


def test_lists_that_fit_are_taken(make: Make) -> None:
    sharp = {"type": "group_softmax", "temperature": 0.1}
    for head, loss in (("listwise", {"type": "listwise"}), ("listwise", {"type": "ranknet"}), ("cosine", sharp)):
        settings = tiny.parsed(make(model__reranking={**LISTS, "head": head}, training__reranking__loss=loss))
        assert settings.model.reranking.starts_at_random == (head == "listwise")


@pytest.mark.parametrize("target", ["q_prj", "query"])
def test_an_unknown_projection_is_named(make: Make, target: str, base: Path) -> None:
    """Whether by the configuration or by the model: silently training fewer layers is the one wrong answer."""
    content = make(model__adapter={"rank": 2, "targets": ["v_proj", target]})
    with pytest.raises(UserError, match=target):
        tiny.build(base, adapter=tiny.parsed(content).model.adapter.model_dump())


def test_an_adapter_without_targets_is_refused(make: Make, base: Path) -> None:
    with pytest.raises(UserError, match="targets"):
        tiny.build(base, adapter=tiny.parsed(make(model__adapter={"targets": []})).model.adapter.model_dump())


@pytest.mark.parametrize("path", ["seeds", "data", "training", "training.embedding", "training.reranking.steps"])
def test_a_missing_key_is_named(make: Make, path: str) -> None:
    content = make()
    *parents, last = path.split(".")
    place = content
    for part in parents:
        place = place[part]
    del place[last]
    assert f"{path}: required, but missing" in refused(content)


def test_further_problems_are_counted(make: Make) -> None:
    message = refused(make(model__adapter={"rnak": 8, "alhpa": 1}, budget="half"))
    assert message.endswith("(and 2 more)")


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_something_else_than_keys_and_values(content: Any) -> None:
    assert refused(content) == "my.yaml: expected keys and values at the top level"


def test_the_loss_is_chosen_by_its_type(make: Make) -> None:
    assert isinstance(tiny.parsed(make()).training.reranking.loss, GroupSoftmaxConfig)
    for loss, kind in (({"type": "bce"}, BCEConfig), ({"type": "group_softmax"}, GroupSoftmaxConfig)):
        assert isinstance(tiny.parsed(make(training__reranking__loss=loss)).training.reranking.loss, kind)
    assert isinstance(tiny.parsed(make()).training.embedding.loss, InfoNCEConfig)
    assert "temperature" in refused(make(training__reranking__loss={"type": "bce", "temperature": 1.0}))


def test_overrides(make: Make, tmp_path: Path) -> None:
    path = tiny.write_yaml(make(), tmp_path / "c.yaml")
    overrides = ["training.optimizer.lr=1e-3", "seeds=[1,2]", "model.layers=2", "arms=[joint_single]"]
    overrides += ["evaluation.suites.test.queries=null", "training.reranking.loss={type: bce, positive_weight: 3}"]
    config = load_config(path, overrides)
    assert config.training.optimizer.lr == 1e-3
    assert config.seeds == (1, 2)
    assert config.model.layers == 2
    assert config.arms == ("joint_single",)
    assert config.evaluation.suites["test"].queries is None
    assert config.training.reranking.loss == BCEConfig(positive_weight=3)
    # What is not named stays.
    assert config.training.embedding == tiny.parsed(make()).training.embedding


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.optimiser.lr=1", "optimiser: unknown key; did you mean 'optimizer'?"),
        ("training.optimizer.lr=fast", "training.optimizer.lr: "),
        ("training.optimizer.lr", "write key=value"),
        ("=3", "write key=value"),
        ("training.embedding=3", "training.embedding: "),
        ("name=[", "--set name=[: the value of name cannot be read; check brackets and quotes"),
        ("seeds=[42", "--set seeds=[42: the value of seeds cannot be read"),
        ("training.optimizer.lr=-1", "--set training.optimizer.lr=-1: training.optimizer.lr: input should be greater"),
        ("arms=[joint]", "--set arms=[joint]: arms: unknown arm 'joint'"),
        ("data.domains.kitchen.source=${oc.env:NOT_SET_ANYWHERE}", ""),
        ("model.base=${nothing.here}", ""),
    ],
)
def test_a_wrong_override_is_one_line(make: Make, tmp_path: Path, override: str, message: str) -> None:
    path = tiny.write_yaml(make(), tmp_path / "c.yaml")
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "- 1\n- 2", "", "just words", "a: 1\na: 2", "\tname: x"])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UserError, match=r"c\.yaml: "):
        load_config(path)
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path)


def test_steps_by_arm_and_budget(make: Make) -> None:
    config = tiny.parsed(make(training__embedding__steps=10, training__reranking__steps=7))
    assert config.steps(BUILTIN["joint_single"], Task.EMBEDDING) == 10
    assert config.steps(BUILTIN["emb_only"], Task.RERANKING) == 0


def test_a_configuration_does_not_change_after_loading(make: Make) -> None:
    config: StudyConfig = tiny.parsed(make())
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


def test_configurations_load_without_torch() -> None:
    """`--help` and a misspelt key must not cost seconds."""
    code = (
        "import sys, unimoer.config, unimoer.types; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
