"""A whole experiment: four systems, resumed after a kill, refused under other settings, and its processes."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import tiny
from unimoer.config import RagConfig
from unimoer.errors import UserError
from unimoer.executors.progress import Progress
from unimoer.rag import run, worker
from unimoer.rag.pipeline import Pipeline
from unimoer.rag.run import run_rag
from unimoer.runs.events import Event
from unimoer.schema import RagAnswer, RagCosts, RagPlan, RagResults, read_record

Make = Callable[..., RagConfig]
ALL = ("unified", "two_models", "bm25_only", "no_retrieval")


def start(config: RagConfig, folder: Path) -> str:
    """What was printed."""
    printed = io.StringIO()
    run_rag(config, folder, device=tiny.CPU, command="test", console=Console(file=printed, width=200))
    return printed.getvalue()


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The work of every process in this one, which has its imports already; what was done, in order."""
    done: list[tuple[str, str]] = []

    def work(folder: Path, system: Any, step: str, progress: Progress) -> None:
        done.append((system, step))
        events = io.StringIO()
        worker.main(folder, system, step, events)
        for line in events.getvalue().splitlines():
            progress.take(Event(**json.loads(line)))

    monkeypatch.setattr(run, "_work", work)
    return done


def found(folder: Path, system: str) -> list[dict[str, Any]]:
    """Answers without their times."""
    return [
        line | {"milliseconds": sorted(line["milliseconds"])}
        for line in tiny.lines(folder / "systems" / system / "kitchen.jsonl")
    ]


def test_four_systems_answer_the_same_questions(make: Make, tmp_path: Path, inside: list[tuple[str, str]]) -> None:
    folder = tmp_path / "rag"
    printed = start(make(), folder)
    assert inside == [(system, step) for system in ALL for step in ("answer", "measure")]
    assert "kitchen: 5 questions, 30 passages" in printed
    stages = {
        "unified": ["bm25", "dense", "embed", "generate", "rerank"],
        "two_models": ["bm25", "dense", "embed", "generate", "rerank"],
        "bm25_only": ["bm25", "generate"],
        "no_retrieval": ["generate"],
    }
    for system in ALL:
        lines = found(folder, system)
        assert len(lines) == 5 and all(line["milliseconds"] == stages[system] for line in lines)
        assert [line["id"] for line in lines] == [line["id"] for line in found(folder, "unified")]
        assert all(len(line["passages"]) == (0 if system == "no_retrieval" else 2) for line in lines)
    assert [one["passages"] for one in found(folder, "unified")] != [
        one["passages"] for one in found(folder, "two_models")
    ]

    results = read_record(RagResults, folder / "results.json")
    assert tuple(results.systems) == ALL and len(results.differences) == 6
    one, two, words, none = (results.systems[system].costs for system in ALL)
    assert two.weights_mb > one.weights_mb > words.weights_mb == none.weights_mb > 0
    assert all(cost.peak_mb >= cost.loaded_mb > 0 for cost in (one, two, words, none))
    assert one.models["embedder"].rpartition(" (")[0] == one.models["reranker"].rpartition(" (")[0]
    assert two.models["embedder"].rpartition(" (")[0] != two.models["reranker"].rpartition(" (")[0]
    assert words.models.keys() == none.models.keys() == {"generator"} and one.questions == 2
    assert (folder / "report.md").read_text().startswith("# rag: retrieval-augmented generation")
    for line in tiny.lines(folder / "systems" / "unified" / "kitchen.jsonl"):
        RagAnswer.model_validate(line)

    # Once more: nothing is answered or measured again.
    inside.clear()
    before = (folder / "results.json").read_bytes()
    start(make(), folder)
    assert inside == [] and (folder / "results.json").read_bytes() == before


def test_a_killed_run_goes_on_behind_its_last_whole_line(
    make: Make, tmp_path: Path, inside: list[tuple[str, str]]
) -> None:
    config = make(baselines=[], two_models=None)
    start(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    child = os.fork()
    if child == 0:
        try:
            ask, asked = Pipeline.ask, 0

            def die(pipeline: Pipeline, question: Any) -> Any:
                nonlocal asked
                asked += 1
                # The first one only warms up.
                if asked == 5:
                    with (folder / "systems" / "unified" / "kitchen.jsonl").open("a") as file:
                        file.write('{"id": "q')
                    os.kill(os.getpid(), signal.SIGKILL)
                return ask(pipeline, question)

            Pipeline.ask = die  # type: ignore[method-assign]
            start(config, folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    lines = (folder / "systems" / "unified" / "kitchen.jsonl").read_text().splitlines()
    assert len(lines) == 4 and lines[3] == '{"id": "q'
    start(config, folder)
    assert found(folder, "unified") == found(tmp_path / "whole", "unified")
    # What was answered before the kill was not answered again.
    assert (folder / "systems" / "unified" / "kitchen.jsonl").read_text().splitlines()[:3] == lines[:3]


def test_another_experiment_is_refused(make: Make, tmp_path: Path, inside: list[tuple[str, str]]) -> None:
    folder = tmp_path / "rag"
    few = {"unified": None, "two_models": None, "baselines": ["no_retrieval"]}
    start(make(**few), folder)
    with pytest.raises(UserError, match=r"rag: holds an experiment of other settings \(retrieval.passages: 2, now 3\)"):
        start(make(**few, retrieval={"rerank": 6, "passages": 3}), folder)
    with pytest.raises(UserError, match=r"\(two_models: null, now {"):
        start(make(**few | {"two_models": {"embedder": "a", "reranker": "b"}}), folder)
    for file in ("env.json", "plan.json"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / file).write_text("{}")
        with pytest.raises(UserError, match="other: holds a run or a study; choose another --output"):
            start(make(**few), tmp_path / "other")


def test_answers_of_two_models_are_not_mixed(make: Make, tmp_path: Path, inside: list[tuple[str, str]]) -> None:
    """A model that was trained again in its place has the same name."""
    config = make(baselines=[], two_models=None)
    start(config, tmp_path / "rag")
    place = tmp_path / "rag" / "systems" / "unified"
    answers, models = place / "kitchen.jsonl", json.loads((place / "models.json").read_text())
    assert models.keys() == {"generator", "embedder", "reranker"}
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:-1]))
    (place / "models.json").write_text(json.dumps(models | {"reranker": "mine (0123456789abcdef)"}))
    with pytest.raises(UserError, match=r"unified: answers of another reranker, mine \(0123456789abcdef\), now"):
        start(config, tmp_path / "rag")
    (place / "models.json").write_text(json.dumps(models))
    start(config, tmp_path / "rag")


def test_what_cannot_begin_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.jsonl: no such file"):
        start(make(questions={"kitchen": {"source": "gone.jsonl"}}), tmp_path / "rag")
    assert not (tmp_path / "rag").exists()


def test_a_model_that_cannot_rerank_is_named(
    make: Make, tmp_path: Path, inside: list[tuple[str, str]], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimoer.library.model.trained_tasks", lambda _: (tiny.Task.EMBEDDING,))
    with pytest.raises(UserError, match=r"was not trained to rerank; set retrieval.rerank=0, or name another"):
        start(make(two_models=None), tmp_path / "rag")


@pytest.mark.slow
def test_every_system_has_processes_of_its_own(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process answers, another one measures; both are fresh, and a user's mistake in one is one line here."""
    folder = tmp_path / "rag"
    config = make(unified=None, two_models=None, baselines=["no_retrieval"], memory_questions=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Other tests of this process may have some.
    others = set(psutil.Process().children())

    class Stop(Progress):
        def take(self, event: Event) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "Progress", Stop)
        with pytest.raises(KeyboardInterrupt):
            start(config, folder)
    # Whoever is interrupted takes its process along.
    assert set(psutil.Process().children()) <= others
    assert read_record(RagPlan, folder / "plan.json").asked["kitchen"].questions == 5
    start(config, folder)
    costs = read_record(RagCosts, folder / "systems" / "no_retrieval" / "costs.json")
    assert costs.peak_mb >= costs.loaded_mb > costs.runtime_mb > 50 and costs.threads == 1
    assert len(found(folder, "no_retrieval")) == 5

    server = {"type": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "NO_SUCH_KEY"}
    wrong = config.model_copy(update={"generator": make(generator=server).generator})
    with pytest.raises(UserError, match=r"^generator.key_variable: NO_SUCH_KEY is not set in the environment$"):
        start(wrong, tmp_path / "wrong")


@pytest.mark.assets
@pytest.mark.slow
def test_the_embedded_model_answers_questions(tmp_path: Path, inside: list[tuple[str, str]]) -> None:
    """The released model finds most of a few real questions' passages, which a closed book does not have."""
    config = RagConfig.model_validate(
        {
            "questions": {"cwe": {"source": "embedded:cwe", "split": "dev", "sample": 4, "documents": 40}},
            "baselines": ["no_retrieval"],
            "retrieval": {"rerank": 4},
            "generator": {"type": "base", "new_tokens": 12},
            "memory_questions": 1,
        }
    )
    start(config, tmp_path / "rag")
    results = read_record(RagResults, tmp_path / "rag" / "results.json")
    measures = results.systems["unified"].sets["cwe"].measures
    assert measures["passage_recall"].mean is not None and measures["passage_recall"].mean > 0.4
    assert all(line["answer"] for line in tiny.lines(tmp_path / "rag" / "systems" / "unified" / "cwe.jsonl"))
    assert "answer_recall" not in results.systems["no_retrieval"].sets["cwe"].measures
