"""What each section says, and that it takes traits from the objects that have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unimoer.errors import UserError
from unimoer.report.section import Section
from unimoer.report.sections import SECTIONS, build_sections, points, training
from unimoer.report.study import StudyFolder
from unimoer.report.table import Table
from unimoer.schema import TrainingLine
from unimoer.schema.results import Points
from unimoer.types import Task

Get = Callable[[str], StudyFolder]


def section(study: StudyFolder, name: str) -> Section:
    found = SECTIONS[name](study)
    assert found is not None
    return found


def table(found: Section, name: str) -> Table:
    return next(table for table in (*found.tables, *found.folded) if table.name == name)


def column(found: Table, name: str) -> dict[str, str]:
    """First column -> the named one."""
    index = list(found.columns).index(name)
    return {str(row[0]): str(row[index]) for row in found.cells}


def test_sections_come_in_the_study_s_order_and_without_the_empty_ones(studies: Get) -> None:
    study = studies("curve")
    assert "verdict" in study.results.sections and "arms" in study.results.sections
    assert list(build_sections(study)) == ["points", "scores", "training", "runs", "data", "provenance"]
    results = study.results.model_copy(update={"sections": ["runs", "points"]})
    assert list(build_sections(StudyFolder(study.folder, results))) == ["runs", "points"]


def test_an_unknown_section_is_one_line(studies: Get) -> None:
    study = studies("curve")
    results = study.results.model_copy(update={"sections": ["routng"]})
    with pytest.raises(UserError, match=r"results.json: sections: unknown section 'routng'; did you mean 'routing'"):
        build_sections(StudyFolder(study.folder, results))


def test_scores_have_bm25_with_its_interval_and_a_random_order(studies: Get) -> None:
    found = section(studies("inconclusive"), "scores")
    average = column(table(found, "scores_reranking"), "Average")
    assert list(average) == [
        "BM25",
        "Random order",
        "Untrained",
        "Reranking specialist",
        "One shared LoRA",
        "Ceiling: perfect order",
        "Recall of the candidates",
    ]
    assert average["BM25"] == "0.585 [0.555, 0.615]" and average["Ceiling: perfect order"] == "0.880"
    assert list(column(table(found, "scores_embedding"), "hpo"))[-1] == "One shared LoRA"
    assert column(table(found, "metrics_embedding"), "MRR@10")["BM25"] == "0.526"


def test_a_system_missing_on_a_collection_leaves_a_dash(studies: Get) -> None:
    study = studies("inconclusive")
    content = study.results.model_dump(mode="json")
    del content["scores"][""]["embedding"]["datasets"]["hpo"]["joint_single"]
    changed = StudyFolder(study.folder, type(study.results).model_validate(content), study.decision)
    assert column(table(section(changed, "scores"), "scores_embedding"), "hpo")["One shared LoRA"] == "–"


def test_a_freely_named_variant_still_names_a_file(studies: Get) -> None:
    study = studies("grid")
    scores = study.results.scores
    renamed = study.results.model_copy(
        update={"scores": {"a": scores["rank4-experts2"], "b/c: d": scores["rank8-experts2"]}}
    )
    found = section(StudyFolder(study.folder, renamed), "scores")
    assert found.folded[0].name == "scores_b-c-d_embedding" and found.folded[0].caption.endswith(", b/c: d")
    assert found.tables[0].name == "scores_embedding" and found.tables[0].caption.endswith(", a")


def test_other_suites_and_data(studies: Get) -> None:
    study = studies("inconclusive")
    others = section(study, "other_suites")
    assert [one.name for one in others.tables] == ["scores_beir_embedding", "scores_beir_reranking"]
    data = section(study, "data")
    collections = table(data, "collections_main")
    assert column(collections, "Overlap with training")["code"] == "17% of the relevant documents seen in training"
    assert column(collections, "Distractors")["hpo"] == "700" and "hpo: HPO licence." in collections.notes
    assert column(table(data, "domains"), "Held out")["hpo"] == "40"


def test_learned_is_what_moved_not_what_a_name_says(studies: Get) -> None:
    study = studies("routing")
    assert study.results.arms["prior_fixed"].plan.learned and not study.learned("prior_fixed")
    assert study.learned("moe") and not study.learned("moe_start") and not study.learned("hard_switch")
    found = section(study, "arms")
    words = column(table(found, "arms"), "What it is")
    assert words["moe"] == "3 experts, learned sparsegen router per text"
    assert words["moe_start"] == "3 experts, fixed sparsegen router per text, untrained start of moe"
    assert words["prior_fixed"] == "3 experts, fixed task_prior router per text, task prior 1"
    assert words["rank_wise_token"] == "ranks of one LoRA, learned smear router"
    assert words["One shared LoRA"] == "one LoRA"
    assert any("left where they began" in text and text.endswith("prior_fixed.") for text in found.paragraphs)
    routing = section(study, "routing")
    assert column(table(routing, "routing"), "Routing") == {
        "moe": "learned",
        "moe_start": "not learned",
        "prior_fixed": "not learned",
        "rank_wise_token": "learned",
    }


def test_arms_against_the_shared_lora_and_their_own_start(studies: Get) -> None:
    found = section(studies("routing"), "arms")
    embedding = table(found, "arms_embedding")
    assert column(embedding, "To start")["moe"] == "+0.018 [0.006, 0.030]"
    assert column(embedding, "To start")["hard_switch"] == "–"
    assert column(embedding, "MDE")["moe"] == "0.014" and column(embedding, "Difference")["One shared LoRA"] == ""
    assert column(embedding, "Recovery")["hard_switch"].startswith("+83% [")
    assert column(table(found, "costs"), "Query, ms")["moe"] == "12.3"
    lead = found.paragraphs[0]
    assert (
        "hard_switch comes first of 6 arms by mean TIR. hard_switch is ahead of One shared LoRA by 3.5 points" in lead
    )
    assert "hard_switch is ahead of moe by 1.0 points, 95% interval [−1.1, 3.0]. That does not settle" in lead
    assert "hard_switch comes first" in lead and "cannot tell it from moe; the others lie behind" in lead
    assert "does not settle whether learning to route helps" in lead
    assert "Holm-corrected p below 0.05: hard_switch" in found.paragraphs[1]


def test_one_shared_lora_that_may_be_best_is_said(studies: Get) -> None:
    study = studies("routing")
    content = study.results.model_dump(mode="json")
    content["recovery"]["ranking"]["not_told_apart"] = ["moe", "joint_single"]
    changed = StudyFolder(study.folder, type(study.results).model_validate(content), study.decision)
    assert "nothing here shows that experts or routers are needed" in section(changed, "arms").paragraphs[0]


def test_routing_says_what_was_learned_beyond_the_start_and_noise(studies: Get) -> None:
    (text,) = section(studies("routing"), "routing").paragraphs
    assert "Learned to route the tasks apart: moe (0.60 bits; 0.04 at the start; noise 0.03)." in text
    assert "Did not: rank_wise_token (0.05 bits" in text
    assert "Not learned, for comparison: moe_start (0.02 bits) and prior_fixed (0.30 bits)." in text
    assert "other roles in other seeds in moe" in text


def test_mined_negatives_begin_where_the_log_says(studies: Get) -> None:
    def line(step: int, hard: bool | None) -> TrainingLine:
        return TrainingLine(step=step, task=Task.RERANKING, task_step=step, domain="hpo", loss=1.0, hard=hard)

    assert training.hard_from([line(0, False), line(1, False), line(2, True), line(3, True)]) == 2
    assert training.hard_from([line(0, True), line(1, True)]) is None
    assert training.hard_from([line(0, False), line(1, False)]) is None
    assert training.hard_from([line(0, None)]) is None


def test_series_of_a_curve_and_of_a_grid(studies: Get) -> None:
    curve, grid = studies("curve"), studies("grid")
    assert curve.results.points is not None and grid.results.points is not None
    found = points.series(curve, curve.results.points, Task.EMBEDDING)
    assert set(found) == {"specialist", "One shared LoRA", "moe"}
    assert [point.x["steps"] for point in found["moe"]] == [50, 100, 200, 400, 800, 1600]
    # The number of experts tells a grid's points apart; parameters, which follow from it and the rank, must not.
    found = points.series(grid, grid.results.points, Task.RERANKING)
    assert set(found) == {"specialist, 2 experts", "specialist, 3 experts", "moe, 2 experts", "moe, 3 experts"}
    assert all([point.x["rank"] for point in series] == [4, 8, 16] for series in found.values())


def test_names_that_end_in_a_size_are_one_line(studies: Get) -> None:
    study = studies("curve")
    assert study.results.points is not None
    one = next(point for point in study.results.points.points if point.arm == "moe")

    def line(names: list[tuple[str, str]]) -> dict[str, list[float]]:
        found = [
            one.model_copy(update={"arm": arm, "variant": v, "x": {"total": n}}) for n, (arm, v) in enumerate(names)
        ]
        grouped = points.series(study, Points(x="total", points=found), one.task, lines=True)
        return {label: [point.x["total"] for point in series] for label, series in grouped.items()}

    assert line([("experts_2", ""), ("all_ranks_8", ""), ("experts_6", ""), ("moe", "")]) == {
        "experts": [0, 2],
        "all_ranks": [1],
        "moe": [3],
    }
    # Sizes of one base are one line, bases of two families are two, and other variants are not taken apart.
    assert line([("moe", "qwen3-0.6b"), ("moe", "qwen3-8b")]) == {"moe": [0, 1]}
    assert line([("moe", "qwen3-0.6b"), ("moe", "mistral-7b"), ("moe", "qwen3-8b")]) == {
        "moe, qwen3": [0, 2],
        "moe, mistral": [1],
    }
    assert line([("moe", "with"), ("moe", "without")]) == {"moe": [0, 1]}


def test_points_table_has_only_what_was_measured(studies: Get) -> None:
    curve = table(section(studies("curve"), "points"), "points_embedding")
    assert list(curve.columns) == ["Arm", "Steps", "Seeds", "nDCG@10", "TIR", "MDE", "Recovery", "To BM25"]
    grid = table(section(studies("grid"), "points"), "points_embedding")
    assert list(grid.columns) == ["Arm", "Variant", "Rank", "Experts", "Trainable", "Seeds", "nDCG@10", "TIR", "MDE"]
    text = section(studies("curve"), "points").paragraphs[0]
    assert text.startswith("Embedding: TIR is above 0 (sharing costs) at 7 of 12 points, below at 0.")


def test_provenance_is_there_and_differences_are_named(studies: Get) -> None:
    study = studies("inconclusive")
    content = study.results.model_dump(mode="json")
    content["provenance"]["differing"] = {"git_commit": {"a": "1", "b": "2", "c": "2"}}
    content["provenance"]["environment"]["git_dirty"] = True
    changed = StudyFolder(study.folder, type(study.results).model_validate(content), study.decision)
    notes = {note.title: note.lines for note in section(changed, "provenance").notes}
    assert notes["Commands"] == ["unimoer run kill-gate --set 'seeds=[42, 123]'"]
    assert notes["Commit"] == ["0123456789abcdef0123456789abcdef01234567 with uncommitted changes"]
    assert "layers: 12 of 30" in notes["Settings"] and notes["Runs differ in"] == ["git_commit: 1 in a; 2 in b, c"]
    assert notes["Hardware"] == ["Example CPU @ 2.0 GHz, 2 cores, 15.6 GB memory, device cpu"]


def test_a_resumed_run_s_log_counts_every_step_once(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders("inconclusive"), tmp_path / "study")
    study = StudyFolder.read(folder)
    run = study.runs("joint_single")[0]
    before = study.losses(run)
    log = folder / "runs" / run.folder / "metrics.jsonl"
    again = {"step": 5, "task": "embedding", "task_step": 5, "domain": "hpo", "loss": 7.5}
    log.write_text(log.read_text("utf-8") + json.dumps(again) + '\n{"step": 6, "ta', "utf-8")
    after = study.losses(run)
    assert len(after) == len(before) == 88
    assert [line.loss for line in after if line.step == 5 and line.task == Task.EMBEDDING] == [7.5]
