"""Every verb as the command line calls it: 0 when done, 2 and one line on stderr for whatever a user can put right."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from unimoer.assets import ASSETS, wheel_path
from unimoer.cli import main
from unimoer.cli.options import config_folder, find_config
from unimoer.errors import UserError

Make = Callable[..., dict[str, Any]]
Call = Callable[..., tuple[int, str, str]]


def run_on(content: dict[str, Any], tmp_path: Path) -> list[str | Path]:
    """The arguments of a whole experiment over this configuration."""
    path = tiny.write_yaml(content, tmp_path / "config.yaml")
    return ["run", "kill-gate", "--config", path, "--output", tmp_path / "out", "--device", "cpu"]


def over(experiment: Make, source: Path, **changes: Any) -> dict[str, Any]:
    """Trained and evaluated on one data set."""
    one = {"kitchen": {"source": str(source)}}
    return experiment(data__domains=one, evaluation__suites__test__collections=one, **changes)


@pytest.fixture
def kitchen(data: dict[str, Path], tmp_path: Path) -> Path:
    """A data set to break."""
    return shutil.copytree(data["kitchen"], tmp_path / "kitchen")


@pytest.fixture
def broken(kitchen: Path, experiment: Make, tmp_path: Path, refused: Callable[..., str]) -> Callable[[], str]:
    """Start a study on the data set that the test has broken."""

    def run() -> str:
        return refused(*run_on(over(experiment, kitchen), tmp_path))

    return run


@pytest.mark.parametrize(
    "verb", ["", "run", "run kill-gate", "train", "evaluate", "analyze", "data", "bench", "bench train", "info"]
)
def test_help(call: Call, verb: str) -> None:
    code, out, err = call(*verb.split(), "--help")
    assert code == 0
    assert "Usage" in out
    assert err == ""


def test_info_shows_versions_and_hardware(call: Call) -> None:
    code, out, _ = call("info")
    assert code == 0
    for word in ("unimoer", "torch", "processor", "precision of the frozen base", "embedded assets"):
        assert word in out


def test_info_of_something_that_is_no_run(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no finished checkpoint here" in refused("info", tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", '{"_id": "x"', "corpus.jsonl:31: is not valid JSON"),
        ("corpus.jsonl", "[1, 2]", "corpus.jsonl:31: must be a JSON object"),
        ("corpus.jsonl", '{"_id": "d3", "text": "again"}', "corpus.jsonl:31: duplicate document id 'd3'"),
        ("queries.jsonl", '{"_id": "q3", "text": "again"}', "queries.jsonl:76: duplicate query id 'q3'"),
        ("queries.jsonl", '{"_id": "q99", "text": 5}', "queries.jsonl:76: field 'text' must be a string"),
        ("qrels/test.tsv", "q2\td1", "test.tsv:17: has 2 fields; 3 are needed"),
        ("qrels/train.tsv", "q2\td1\tgood", "train.tsv:62: the grade must be a whole number"),
    ],
)
def test_a_line_of_data_that_is_wrong(
    kitchen: Path, broken: Callable[[], str], file: str, line: str, message: str
) -> None:
    with (kitchen / file).open("a") as target:
        target.write(line + "\n")
    assert message in broken()


@pytest.mark.parametrize("row", [100, 1234])
def test_a_line_number_is_printed_as_it_is(kitchen: Path, broken: Callable[[], str], row: int) -> None:
    """Rich makes an emoji of `:100:`."""
    lines = [json.dumps({"_id": f"d{number}", "text": "a"}) for number in range(row - 1)]
    (kitchen / "corpus.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    assert f"{kitchen}/corpus.jsonl:{row}: is not valid JSON" in broken()


def test_an_empty_corpus(kitchen: Path, broken: Callable[[], str]) -> None:
    (kitchen / "corpus.jsonl").write_text("")
    assert "the corpus is empty" in broken()


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "data.domains.kitchen: split 'train' of "), ("test", "collection 'kitchen': split 'test' of ")],
)
def test_queries_without_positives(split: str, message: str, kitchen: Path, broken: Callable[[], str]) -> None:
    file = kitchen / "qrels" / f"{split}.tsv"
    file.write_text(file.read_text().replace("\t1\n", "\t0\n"))
    assert message in broken()


def test_a_corpus_that_is_too_small_for_the_negatives(kitchen: Path, broken: Callable[[], str]) -> None:
    (kitchen / "corpus.jsonl").write_text('{"_id": "d0", "text": "a"}\n{"_id": "d1", "text": "b"}\n')
    for split in ("train", "test"):
        (kitchen / "qrels" / f"{split}.tsv").write_text("q0\td0\t1\n")
    assert "negatives" in broken()


def test_a_data_folder_that_is_not_there(experiment: Make, tmp_path: Path, refused: Callable[..., str]) -> None:
    content = experiment(data__domains={"kitchen": {"source": str(tmp_path / "nowhere")}})
    assert f"folder '{tmp_path / 'nowhere'}' does not exist" in refused(*run_on(content, tmp_path))


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("training__optimizer__learning_rat", 1, "config.yaml: training.optimizer.learning_rat: unknown key"),
        ("model__adapter__rnak", 8, "model.adapter.rnak: unknown key; did you mean 'rank'?"),
        ("training__embedding__steps", "many", "training.embedding.steps: input should be a valid integer"),
        ("model__base", "/nowhere/at/all", "model.base: /nowhere/at/all: no such folder"),
        ("model__base", "missing.gguf", "model.base: missing.gguf: no such GGUF file"),
        ("model__base", "someone/nothing", "model.base: someone/nothing cannot be loaded"),
        ("model__layers", 99, "model.layers: 99 asked for, but the model has 3"),
        ("model__prompts__pair", "{query}", "model.prompts.pair: must contain {document} exactly once"),
    ],
)
def test_a_configuration_that_is_wrong(
    experiment: Make, tmp_path: Path, refused: Callable[..., str], dotted: str, value: Any, message: str
) -> None:
    assert message in refused(*run_on(experiment(**{dotted: value}), tmp_path))


def test_an_override_that_is_wrong(experiment: Make, tmp_path: Path, refused: Callable[..., str]) -> None:
    arguments = run_on(experiment(), tmp_path)
    assert "did you mean 'optimizer'?" in refused(*arguments, "--set", "training.optimiser.lr=1")
    assert "write key=value" in refused(*arguments, "--set", "lr")


def test_arms_are_checked_before_anything_else_is_done(
    experiment: Make, tmp_path: Path, refused: Callable[..., str]
) -> None:
    arguments = run_on(experiment(), tmp_path)
    assert "did you mean 'hard_switch'?" in refused(*arguments, "--arms", "emb_only,hard_swich")
    twice = refused(*arguments, "--arms", "emb_only,emb_only")
    assert "distinct" in twice
    unfit = "custom_arms.mine={experts: {one: 1, two: 1}, router: {type: hard}}"
    assert "needs an expert 'embedding'" in refused(
        *arguments, "--set", unfit, "--arms", "emb_only,rank_only,joint_single,mine"
    )
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_configuration_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such configuration file" in refused("run", "kill-gate", "--config", tmp_path / "none.yaml")
    assert "did you mean 'quick'?" in refused("run", "kill-gate", "--config", "quik")
    assert "no shipped configuration of that name" in refused("train", "nonsense-name")


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps", "tpu", "cpu:x"])
def test_a_device_that_is_not_there(experiment: Make, tmp_path: Path, refused: Callable[..., str], device: str) -> None:
    arguments = run_on(experiment(), tmp_path)[:-1]
    assert f"--device {device}" in refused(*arguments, device)
    # Before anything is loaded or written.
    assert not (tmp_path / "out" / "runs").exists()


def test_weights_that_would_have_to_be_unpickled(
    base: Path, experiment: Make, tmp_path: Path, refused: Callable[..., str]
) -> None:
    moved = shutil.copytree(base, tmp_path / "base")
    (moved / "model.safetensors").rename(moved / "pytorch_model.bin")
    assert "safetensors" in refused(*run_on(experiment(model__base=str(moved)), tmp_path))


def test_a_wheel_with_another_hash(
    experiment: Make, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path / "cache"))
    wheel = wheel_path(ASSETS["hpo"])
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"another file")
    content = experiment(data__domains={"hpo": {"source": "embedded:hpo"}})
    line = refused(*run_on(content, tmp_path))
    assert f"{wheel}: SHA-256 is " in line
    assert f"expected {ASSETS['hpo'].sha256}" in line


@pytest.mark.parametrize("what", ["data", "model"])
def test_no_network_and_no_cache(
    what: str, experiment: Make, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    changes = {"data__domains": {"cwe": {"source": "embedded:cwe"}}} if what == "data" else {}
    changes |= {"model__base": "embedded:smollm2-135m"} if what == "model" else {}
    line = refused(*run_on(experiment(**changes), tmp_path))
    assert "is not in the cache and could not be downloaded" in line
    assert "make setup" in line


def test_a_loss_that_is_no_number(experiment: Make, tmp_path: Path, refused: Callable[..., str]) -> None:
    content = experiment(training__optimizer__lr=1e30, training__checkpoint_every=1)
    line = refused(*run_on(content, tmp_path))
    assert "loss is nan" in line or "loss is inf" in line
    assert "lower training.optimizer.lr" in line
    assert list(tmp_path.glob("out/runs/emb_only-*/checkpoints/step-*"))


@pytest.mark.parametrize("limit", [100, 1_500, 6_000, 30_000])
def test_a_disk_that_fills_loses_nothing(
    limit: int, experiment: Make, tmp_path: Path, call: Call, refused: Callable[..., str]
) -> None:
    """A limit on the size of any file stands for the full disk; it strikes at another file each time.

    The files are some 500 (status), 3,000 (configuration), 15,000 (adapter) and 45,000 bytes (optimizer) long.
    """
    path = tiny.write_yaml(experiment(arms=["rank_only"]), tmp_path / "config.yaml")
    arguments = ["train", path, "--output", tmp_path / "out"]
    # Mined negatives lie in the cache from here on, and so does the lock.
    tiny.domains(tiny.parsed(experiment(arms=["rank_only"])))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        line = refused(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in line
    assert str(tmp_path / "out") in line
    assert not list((tmp_path / "out").rglob("*.tmp"))
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "done"
    assert f"run  {tmp_path / 'out'}" in out


def test_train_makes_one_run(experiment: Make, tmp_path: Path, call: Call, refused: Callable[..., str]) -> None:
    path = tiny.write_yaml(experiment(), tmp_path / "config.yaml")
    assert "3 arms and 1 seeds; train makes one run" in refused("train", path)
    one = ["--set", "arms=[emb_only]", "--set", "training.embedding.steps=2"]
    code, out, err = call("train", path, *one)
    assert (code, err) == (0, "")
    [folder] = (tmp_path / "runs").glob("emb_only-s1-*")
    assert f"run  runs/{folder.name}" in out
    code, out, _ = call("train", path, *one)
    assert code == 0
    assert "already done" in out


@pytest.fixture(scope="module")
def trained(base: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run folder made by `unimoer train`."""
    folder = tmp_path_factory.mktemp("trained")
    path = tiny.write_yaml(tiny.experiment(base, data, arms=["joint_single"]), folder / "config.yaml")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setenv("UNIMOER_CACHE", str(shared_cache))
        main(["train", str(path), "--output", str(folder / "run")])
    return folder / "run"


def test_info_describes_and_verifies_a_run(trained: Path, call: Call) -> None:
    code, out, err = call("info", trained)
    assert (code, err) == (0, "")
    for words in ("golden outputs", "verified", "rank 4, alpha 8", "mean pooling", "linear head"):
        assert words in out


def test_evaluate_on_data_of_ones_own(trained: Path, data: dict[str, Path], tmp_path: Path, call: Call) -> None:
    """With BM25 and the untrained base beside it."""
    arguments = ["evaluate", trained, "--data", data["garden"], "--output", tmp_path / "scores", "--depth", "5"]
    code, out, err = call(*arguments, "--queries", "6")
    assert (code, err) == (0, "")
    for word in ("nDCG@10", "to BM25", "95% interval", "R@100", "garden"):
        assert word in out
    # At 80 columns no name is folded.
    assert re.search(r"^garden +reranking +joint_single +0\.\d{3} ", out, re.MULTILINE)
    for task in ("embedding", "reranking"):
        for system in ("bm25", "random", "untrained", "joint_single"):
            [file] = (tmp_path / "scores" / system).glob(f"eval/*/final/garden/{task}/metrics.json")
            found = json.loads(file.read_text())
            assert found["queries"] == 6
            assert f"{found['metrics']['ndcg@10']:.3f}" in out
            assert (found["ceiling"] is not None) == (task == "reranking")
    code, out, _ = call(*arguments, "--task", "embedding")
    assert code == 0
    assert "reranking" not in out


def test_paths_are_printed_as_they_are(trained: Path, data: dict[str, Path], tmp_path: Path, call: Call) -> None:
    """Rich would take `[old]` for a style, `[/x]` for its end, and `:100:` for an emoji."""
    moved = shutil.copytree(trained, tmp_path / "run [old]:100:")
    code, out, err = call("info", moved)
    assert (code, err) == (0, "")
    assert "run [old]:100:" in out
    code, out, err = call("evaluate", moved, "--data", data["garden"], "--task", "embedding", "--queries", "2")
    assert (code, err) == (0, "")
    assert "run [old]:100:" in out
    code, out, err = call("train", trained.with_name("config.yaml"), "--output", moved)
    assert (code, err) == (0, "")
    assert out.count(f"{moved}") == 2


def test_evaluate_needs_a_run_and_data(
    trained: Path, data: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "no finished checkpoint here" in refused("evaluate", tmp_path, "--data", data["garden"])
    assert "does not exist" in refused("evaluate", trained, "--data", tmp_path / "nowhere")
    assert "has no split 'dev'" in refused("evaluate", trained, "--data", data["garden"], "--split", "dev")


def test_analyze_needs_a_finished_experiment(trained: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "plan.json" in refused("analyze", tmp_path)
    assert "plan.json" in refused("analyze", trained)


def test_shipped_configurations_are_found_by_name() -> None:
    assert find_config("quick") == config_folder() / "quick.yaml"
    assert find_config("some/path.yaml") == Path("some/path.yaml")
    with pytest.raises(UserError, match="did you mean 'full'"):
        find_config("fulll")


def test_a_verdict_needs_what_it_compares(refused: Callable[..., str], experiment: Make, tmp_path: Path) -> None:
    """Refused before anything is trained, and before a finished verdict is taken away."""
    line = refused(*run_on(experiment(arms=["emb_only", "hard_switch"]), tmp_path))
    assert line.startswith(
        "unimoer: arms: the verdict compares emb_only, rank_only, joint_single, and 'rank_only' is not"
    )
    assert not (tmp_path / "out" / "runs").exists()


def test_matryoshka_sizes_are_checked_before_any_work(
    refused: Callable[..., str], experiment: Make, tmp_path: Path
) -> None:
    content = experiment(training__embedding__loss={"type": "infonce", "matryoshka": [8, 16]})
    line = refused(*run_on(content, tmp_path))
    assert line == "unimoer: training.embedding.loss.matryoshka: the largest of [8, 16] must be the full size, 32"
    assert not (tmp_path / "out" / "runs").exists()


def test_experiment1_is_the_kill_gate_with_routed_experts_and_a_switch(
    call: Call, experiment: Make, tmp_path: Path
) -> None:
    """And with the start of the routed ones. The plan is printed first: arms of equal size within 2%."""
    arms = ["emb_only", "rank_only", "joint_single", "joint_moe", "hard_switch"]
    content = experiment(
        arms=arms,
        model__adapter={"rank": 24, "alpha": 24.0},
        training__embedding__steps=2,
        training__reranking__steps=2,
    )
    path = tiny.write_yaml(content, tmp_path / "config.yaml")
    code, out, err = call("run", "experiment1", "--config", path, "--output", tmp_path / "out", "--device", "cpu")
    assert (code, err) == (0, "")
    declared = json.loads((tmp_path / "out" / "plan.json").read_text())["declared"]
    assert list(declared["arms"][""]) == [*arms, "joint_moe_start"]
    # Of the first table.
    plan = out.partition("training")[0].splitlines()
    rows = {cells[0]: cells for line in plan if len(cells := re.split(r" {2,}", line.strip())) > 3}
    for arm in declared["arms"][""]:
        assert abs(float(rows[arm][-1].rstrip("%"))) <= 2, arm
    assert rows["joint_moe"][1] == "sparsegen, sequence"
    assert rows["joint_moe_start"][1] == "sparsegen, sequence, not trained"
    assert rows["hard_switch"][1:3] == ["hard, told the task", "embedding 12, reranking 12"]
    moe = yaml.safe_load(next((tmp_path / "out" / "runs").glob("joint_moe-*/config.yaml")).read_text())
    assert moe["train"]["model"]["adapter"]["router"]["type"] == "sparsegen"


def test_the_users_arms_win_over_those_of_experiment1(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("unimoer.studies.run.run_study", lambda study, config, *_, **__: seen.append(list(config.arms)))
    monkeypatch.setattr("unimoer.report.html.build_report", lambda folder: folder)
    monkeypatch.setattr("unimoer.report.terminal.summary", lambda folder: "")
    three = "emb_only,rank_only,joint_single"
    for more in (("--set", f"arms=[{three},moe_task]"), ("--arms", f"{three},moe_task"), ()):
        assert call("run", "experiment1", "--quick", "--output", tmp_path, "--device", "cpu", *more)[0] == 0
    assert seen[0] == seen[1] == [*three.split(","), "moe_task"]
    assert {"joint_moe", "hard_switch"} <= set(seen[2])


def test_queries_without_a_relevant_document_are_counted(
    call: Call, experiment: Make, data: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(data["kitchen"], tmp_path / "kitchen")
    for split in ("train", "test"):
        judgements = folder / "qrels" / f"{split}.tsv"
        lines = judgements.read_text().splitlines()
        judgements.write_text("\n".join([*lines[:-1], lines[-1].rsplit("\t", 1)[0] + "\t0"]) + "\n")
    content = over(experiment, folder, training__embedding__steps=1, training__reranking__steps=1)
    code, out, _ = call(*run_on(content, tmp_path))
    assert code == 0
    for split in ("train", "test"):
        assert f"kitchen: queries of split '{split}' without a relevant document, left out: 1" in out
