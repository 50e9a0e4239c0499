"""Arms in words, tables and figures: which won and whether that is settled, and nothing of it where there are none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from markupsafe import escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unimoer.report import arm_plots, figures
from unimoer.report.arm_tables import build_arm_tables
from unimoer.report.arms import arm_paragraphs, arm_summary, arm_words
from unimoer.report.files import Experiment
from unimoer.report.html import render_html, render_markdown
from unimoer.report.routing import routing_paragraphs, routing_words
from unimoer.report.table import Table
from unimoer.report.tables import build_tables

Get = Callable[[str], Path]


@pytest.fixture
def arms(experiments: Get) -> Experiment:
    """Parsed anew, so that a test may change it."""
    return Experiment.read(experiments("arms"))


def tables_of(experiment: Experiment) -> dict[str, Table]:
    return {table.name: table for table in build_arm_tables(experiment)}


@pytest.mark.parametrize(
    ("more", "ending"),
    [({}, "per text"), ({"task_aware": True}, "told the task"), ({"task_prior": 1.0}, "own expert ahead at the start")],
)
def test_what_a_router_is_told_is_said(arms: Experiment, more: dict[str, Any], ending: str) -> None:
    assert arm_words({**arms.settings("joint_moe"), **more}).endswith(ending)


def overall(experiment: Experiment) -> dict[str, Any]:
    found: dict[str, Any] = experiment.results["recovery"]["overall"]
    return found


@pytest.mark.parametrize(
    ("settings", "words", "routing"),
    [
        ({"mode": "joint_single", "experts": {"shared": 8}}, "one LoRA, tasks in turn", "learned"),
        (
            {"mode": "joint_mixed", "experts": {"shared": 8}, "gradients": "pcgrad"},
            "one LoRA, both tasks in every step, PCGrad",
            "learned",
        ),
        ({"mode": "joint_staged", "gradients": "sum"}, "one LoRA, embedding first, then reranking", "learned"),
        (
            {"mode": "joint_moe", "experts": {"a": 1, "b": 2, "c": 3}, "router": "tsallis", "granularity": "token"},
            "3 experts, tsallis router per token",
            "learned",
        ),
        (
            {"mode": "joint_moe", "experts": {"shared": 16}, "router": "topk", "granularity": "sequence"},
            "ranks of one LoRA, topk router per text",
            "learned",
        ),
        (
            {"mode": "joint_mixed", "experts": {"a": 1, "b": [1, 2]}, "router": "hard"},
            "2 experts, switched by the task, both tasks in every step",
            "fixed by the task",
        ),
        (
            {"mode": "joint_moe", "experts": {"a": 1, "b": 1}, "router": "uniform"},
            "2 experts, equal weights (null)",
            "",
        ),
        (
            {"mode": "joint_moe", "experts": {"a": 1, "b": 1}, "router": "random_frozen"},
            "2 experts, random router (null)",
            "random, never trained",
        ),
        (None, "–", "learned"),
    ],
)
def test_words_for_an_arm(settings: dict[str, Any] | None, words: str, routing: str) -> None:
    assert arm_words(settings) == words
    assert not (settings or {}).get("router") or routing in routing_words(settings)


def test_the_winner_its_lead_and_what_is_settled(arms: Experiment) -> None:
    first, learned = arm_summary(arms)
    assert "Of 8 ways to serve both tasks with one model, hard_switch comes out first" in first
    tied = overall(arms)["not_told_apart"]
    assert "joint_moe" in tied and f"cannot tell it from {len(tied)} of the 7 others" in first
    assert "the rest lie behind." in first
    assert "joint_moe, is 0.7 points behind the best arm without one, hard_switch" in learned
    assert "does not say whether learning to route helps" in learned

    found = overall(arms)
    found["not_told_apart"] = []
    assert "put every other arm behind it" in arm_summary(arms)[0]
    found["not_told_apart"] = found["ranking"][1:]
    text = arm_summary(arms)[0]
    assert "any other arm: which is best is open" in text and "nothing here shows that experts" in text
    found["learned_router"] |= {"mean": 2.0, "ci95": [1.0, 3.0]}
    assert "2.0 points ahead of" in arm_summary(arms)[1] and "learning to route pays here" in arm_summary(arms)[1]
    found["learned_router"] |= {"mean": -2.0, "ci95": [-3.0, -1.0]}
    assert "(95% interval 1.0 to 3.0): learning to route costs here." in arm_summary(arms)[1]
    found["learned_router"] |= {"ci95": [None, None]}
    assert arm_summary(arms)[1].endswith("hard_switch (no interval).")


def test_the_shared_lora_as_winner(experiments: Get) -> None:
    experiment = Experiment.read(experiments("arms_lose"))
    text = " ".join(arm_paragraphs(experiment))
    assert "one shared LoRA comes out first" in text and "gains 2.6% on its specialists' nDCG@10" in text
    assert "The next, joint_moe, is 5.4 points behind" in text
    assert "sharing one LoRA costs nothing" in text and "no other arm scores higher" in text
    assert "4 are significantly worse" in text and "significantly better" not in text
    assert "One seed" in text
    for task in ("embedding", "reranking"):
        table = tables_of(experiment)[f"arms_{task}"]
        assert {row[-1].text for row in table.rows} == {"", "–"}
        assert "Recovery is not given: nothing lost that could be won back." in table.notes


def test_reserves(arms: Experiment) -> None:
    before = " ".join(arm_paragraphs(arms))
    assert "steps" not in before and "batches" not in before
    assert "One seed" not in before and "equal size" not in before and "clearly beat" not in before
    arms.results["arm_details"]["pcgrad"]["costs"]["parameters_to_joint"] = 12.5
    arms.results["arm_details"]["pcgrad"]["settings"]["steps"] = {"embedding": 40, "reranking": 80}
    arms.results["arm_details"]["hard_switch"]["settings"]["router"] = "similarity"
    arms.decision["tasks"]["reranking"]["status"] = "underpowered"
    after = " ".join(arm_paragraphs(arms))
    assert "not on the same batches as the other arms: hard_switch." in after
    assert "as many steps of each task as one shared LoRA: pcgrad." in after
    assert "pcgrad +12.5%" in after and "The reranking specialist did not clearly beat" in after


def test_undefined_numbers_have_words(arms: Experiment) -> None:
    found = overall(arms)
    for arm in found["arms"].values():
        arm["tir"] |= {"mean": None, "ci95": [None, None]}
    assert "no ratio can be formed" in arm_summary(arms)[0]
    for task in arms.results["recovery"]["tasks"].values():
        for cell in task["arms"].values():
            cell["tir"] |= {"mean": None, "ci95": [None, None]}
    assert not any("None" in cell.text for table in tables_of(arms).values() for row in table.rows for cell in row)


def test_tables_hold_the_numbers_of_the_results(arms: Experiment) -> None:
    tables = tables_of(arms)
    rows = {row[0].text: [cell.text for cell in row] for row in tables["arms"].rows}
    assert list(rows) == [
        "Two specialists",
        *("One shared LoRA" if arm == "joint_single" else arm for arm in overall(arms)["ranking"]),
    ]
    assert rows["Two specialists"][2] == "2.21M (+100.0%)" and rows["joint_moe"][2] == "1.13M (+1.9%)"
    cell = arms.results["recovery"]["tasks"]["reranking"]["arms"]["joint_moe"]
    score, ratio = cell["mean"], cell["tir"]["mean"]
    assert rows["joint_moe"][4] == f"{score:.3f} ({ratio:+.1f}%)"
    detail = {row[0].text: [cell.text for cell in row] for row in tables["arms_reranking"].rows}["joint_moe"]
    assert detail[3].startswith(f"{cell['difference']['mean']:+.3f} [")
    assert detail[5].startswith(f"{cell['recovery']['mean']:.0f}% [")
    by_dataset = {row[0].text: [cell.text for cell in row] for row in tables["arms_datasets_reranking"].rows}
    name = arms.datasets[0]
    found = arms.results["recovery"]["datasets"][name]["reranking"]["arms"]["random_frozen"]
    assert by_dataset["random_frozen"][1] == f"−{abs(found['difference']['mean']):.3f}†"


def test_costs_of_two_specialists_are_those_of_two_models(arms: Experiment) -> None:
    costs = {arm: entry["costs"] for arm, entry in arms.results["arm_details"].items()}
    costs["joint_moe"]["serving"] = {"weights_mb": 300.0, "embedding_ms": 12.34, "reranking_ms": 1234.5}
    costs["emb_only"]["serving"] = {"weights_mb": 258.0, "embedding_ms": 9.0, "embedding_ms_p95": 10.0}
    costs["rank_only"]["serving"] = {"weights_mb": 258.4, "reranking_ms": 800.0, "reranking_ms_p95": 900.0}
    rows = {row[0].text: [cell.text for cell in row] for row in tables_of(arms)["arm_costs"].rows}
    assert rows["Two specialists"][3:] == ["516 MiB", "9.0", "10.0", "800.0", "900.0"]
    assert rows["joint_moe"][3:] == ["300 MiB", "12.3", "–", "1,234.5", "–"]
    assert rows["hard_switch"][3:] == ["–"] * 5, "not measured"
    del costs["emb_only"]["serving"]
    rows = {row[0].text: [cell.text for cell in row] for row in tables_of(arms)["arm_costs"].rows}
    assert rows["Two specialists"][3] == "–", "one of two models is not their sum"


def test_what_a_router_was_given_is_not_called_learned(arms: Experiment) -> None:
    found = arms.results["routing"]["joint_moe"]
    found["at_start"] = found["mutual_information"] - 0.05
    text = " ".join(routing_paragraphs(arms))
    assert f"joint_moe 0.30 bits, {found['at_start']:.2f} bits of them given at the start" in text
    assert "None of 3 learned routers learned to part the two tasks" in text
    arms.results["arm_details"]["joint_moe"]["settings"]["task_prior"] = 1.0
    rows = {row[0].text: [cell.text for cell in row] for row in tables_of(arms)["routing"].rows}
    assert rows["joint_moe"][1] == "learned, own expert ahead at the start"
    assert arm_plots._is_learned(arms, "joint_moe") and not arm_plots._is_learned(arms, "hard_switch")
    assert not arm_plots._is_learned(arms, "random_frozen") and not arm_plots._is_learned(arms, "pcgrad")
    assert rows["joint_moe"][3] == "0.30" and rows["joint_moe"][5] == f"{found['at_start']:.2f}"


def test_routing_in_words(arms: Experiment) -> None:
    text = " ".join(routing_paragraphs(arms))
    assert "joint_moe learned to part the tasks most, in layer " in text and "over layers: 0.30 bits." in text
    assert "of which noise alone would give" in text, "sixteen ranks and few batches look informed by chance"
    assert "hard_switch (fixed by the task)" in text and "random_frozen 0.00 bits" in text
    assert "Roles differ" not in text
    routing = arms.results["routing"]
    for router in routing["joint_moe"]["routers"]:
        router["mutual_information"]["of_mean_weights"] = 0.0
    assert "Roles differ between seeds in joint_moe" in " ".join(routing_paragraphs(arms))
    routing["joint_moe"]["mutual_information"] = 0.02
    assert "None of 3 learned routers learned to part the two tasks" in " ".join(routing_paragraphs(arms))
    rows = {row[0].text: [cell.text for cell in row] for row in tables_of(arms)["routing"].rows}
    assert rows["hard_switch"][1] == "fixed by the task" and set(rows["hard_switch"][2:]) == {"–"}
    assert rows["rank_wise"][2] == "16" and rows["moe_token"][1] == "learned"
    routing.clear()
    [text] = routing_paragraphs(arms)
    assert text.startswith("No router here weighs its experts: hard_switch (fixed by the task); uniform")


def drawn(draw: Callable[[Experiment], Figure | None], experiment: Experiment) -> Figure:
    with matplotlib.rc_context(figures._STYLE):
        figure = draw(experiment)
        assert figure is not None
        FigureCanvasAgg(figure).draw()
    return figure


def test_an_arm_that_fails_badly_does_not_flatten_the_others(arms: Experiment) -> None:
    reranking = drawn(arm_plots.draw_arms, arms).axes[1]
    low, high = reranking.get_xlim()
    assert low > arms.results["recovery"]["tasks"]["reranking"]["arms"]["random_frozen"]["difference"]["mean"]
    assert "<" in [line.get_marker() for line in reranking.lines], "an arrow stands for it"
    lost = arms.results["recovery"]["tasks"]["reranking"]["lost"]
    assert low < 0 < lost["mean"] < high


def test_routing_is_stacked_or_spread(arms: Experiment) -> None:
    figure = drawn(arm_plots.draw_routing, arms)
    rows = [arm for arm in arms.extra_arms if arm in arms.routing]
    panels = {arm: figure.axes[3 * row] for row, arm in enumerate(rows)}
    layers = len(arms.routing["joint_moe"]["routers"])
    assert len(panels["joint_moe"].patches) == 3 * layers, "a bar for each expert"
    assert len(panels["rank_wise"].patches) == layers, "one for all sixteen"
    heights = [patch.get_height() for patch in panels["joint_moe"].patches[:3]]
    assert sum(heights) == pytest.approx(1.0)


def test_projections_of_a_layer_share_its_place(arms: Experiment) -> None:
    routing = arms.results["routing"]["joint_moe"]
    routing["routers"] = [
        {**entry, "router": f"{entry['layer']}.{part}"} for entry in routing["routers"] for part in ("qkv", "mlp")
    ]
    figure = drawn(arm_plots.draw_routing, arms)
    panel = figure.axes[3 * [arm for arm in arms.extra_arms if arm in arms.routing].index("joint_moe")]
    assert {patch.get_width() for patch in panel.patches} == {0.5}
    assert panel.get_xlim() == (0, 12)


def test_many_experts_and_names_of_ones_own(arms: Experiment) -> None:
    routing = copy.deepcopy(arms.results["routing"]["joint_moe"])
    routing["experts"] = [f"mine{number}" for number in range(3)]
    for entry in routing["routers"]:
        entry["experts"] = routing["experts"]
    arms.results["routing"]["moe_token"] = routing
    legend = drawn(arm_plots.draw_routing, arms).legends[0]
    assert {"embedding", "mine0", "mine2", "active units"} <= {text.get_text() for text in legend.get_texts()}


def test_nothing_of_it_without_arms(experiments: Get) -> None:
    experiment = Experiment.read(experiments("pass"))
    assert arm_paragraphs(experiment) == routing_paragraphs(experiment) == build_arm_tables(experiment) == []
    assert arm_plots.draw_arms(experiment) is None and arm_plots.draw_routing(experiment) is None


def rendered(decision: Any, results: Any) -> tuple[str, str]:
    """The page and the Markdown report, without figures, which take seconds."""
    experiment = Experiment(Path("elsewhere"), decision, results)
    tables = build_tables(experiment)
    return render_html(experiment, tables, []), render_markdown(experiment, tables, [])


def test_results_from_before_there_were_arms(experiments: Get) -> None:
    experiment = Experiment.read(experiments("one_seed"))
    new = ("recovery", "routing", "arm_details")
    old = {key: value for key, value in experiment.results.items() if key not in new}
    assert rendered(experiment.decision, old) == rendered(experiment.decision, experiment.results)


def test_arms_of_a_plan_without_settings(experiments: Get) -> None:
    experiment = Experiment.read(experiments("one_arm"))
    for entry in experiment.results["arm_details"].values():
        entry["settings"] = None
    page, markdown = rendered(experiment.decision, experiment.results)
    assert 'id="arms"' in page and "| pcgrad | – |" in markdown and 'id="routing"' not in page


@pytest.mark.parametrize("variant", ["pass", "arms"])
def test_every_table_has_its_place(variant: str, experiments: Get) -> None:
    """In the page all of them, in the Markdown report those that it does not leave to `tables/`."""
    experiment = Experiment.read(experiments(variant))
    page, markdown = rendered(experiment.decision, experiment.results)
    for table in build_tables(experiment):
        assert f"<caption>{escape(table.caption)}</caption>" in page, table.name
        if not table.name.startswith(("metrics", "conflicts", "arms_datasets")):
            assert f"**{table.caption}**" in markdown, table.name
