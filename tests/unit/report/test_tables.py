"""Tables: the right numbers in the right cells, and text that Markdown and LaTeX print as it is meant."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from unimoer.report.files import Experiment
from unimoer.report.table import Cell, Table, escape_latex
from unimoer.report.tables import build_tables, terminal_summary, write_tables

Get = Callable[[str], Path]


def test_latex_escapes() -> None:
    assert escape_latex("R&D_50% #1 {a} $x ~ ^ \\") == (
        r"R\&D\_50\% \#1 \{a\} \$x \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape_latex("−0.1† ±2 <0.001") == r"$-$0.1$^\dagger$ $\pm$2 \textless{}0.001"


def test_renderings_of_a_small_table() -> None:
    table = Table("t", "A_b", ["x|y", "n"], [[Cell("a|b"), Cell("1", bold=True)], [Cell(""), Cell("2")]], notes="<5%")
    assert table.markdown() == "**A_b**\n\n| x\\|y | n |\n| :-- | --: |\n| a\\|b | **1** |\n|  | 2 |\n\n<5%\n"
    latex = table.latex()
    assert r"\begin{tabular}{lr}" in latex and r"a|b & \textbf{1} \\" in latex and r"\label{tab:t}" in latex
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    wide = Table("w", "", [str(number) for number in range(9)], [[Cell("0")] * 9])
    assert r"\begin{table*}" in wide.latex() and r"\end{table*}" in wide.latex()


@pytest.mark.parametrize(
    "variant",
    ["pass", "one_seed", "underpowered", "one_dataset", "twelve_datasets", "wild", "no_logs", "arms", "one_arm"],
)
def test_every_table_is_rectangular_and_complete(experiments: Get, variant: str) -> None:
    experiment = Experiment.read(experiments(variant))
    tables = {table.name: table for table in build_tables(experiment)}
    expected = {"tir", "scores_embedding", "scores_reranking", "metrics", "datasets", "runs"}
    expected |= set() if variant == "no_logs" else {"conflicts"}
    arms = {
        "arms",
        "arm_costs",
        "arms_embedding",
        "arms_reranking",
        "arms_datasets_embedding",
        "arms_datasets_reranking",
    }
    expected |= {"arms": arms | {"routing"}, "one_arm": arms}.get(variant, set())
    assert set(tables) == expected
    for table in tables.values():
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows)
        assert not any(re.search("nan|None", cell.text) for row in table.rows for cell in row)
        rows = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(table.columns) - 1}
    assert len(tables["tir"].rows) == 2 * (1 + len(experiment.datasets))
    assert len(tables["runs"].rows) == (3 + len(experiment.extra_arms)) * len(experiment.seeds)


def test_numbers_are_those_of_the_decision(experiments: Get) -> None:
    experiment = Experiment.read(experiments("pass"))
    tables = {table.name: table for table in build_tables(experiment)}
    rows = {row[0].text: [cell.text for cell in row] for row in tables["scores_reranking"].rows}
    assert list(rows) == [
        "BM25",
        "Untrained base",
        "Reranking specialist",
        "Joint, one adapter",
        "Ceiling: perfect order",
        "Candidate recall",
    ]
    assert tables["scores_reranking"].columns[1:-1] == experiment.datasets
    assert rows["Candidate recall"][1:5] == ["0.810", "0.900", "0.770", "0.660"]
    found = experiment.decision["datasets"]["hpo"]["reranking"]["specialist"]["mean"]
    assert rows["Reranking specialist"][1 + experiment.datasets.index("hpo")] == f"{found:.3f}"
    average = next(row for row in tables["tir"].rows if row[0].text == "embedding")
    assert average[5].text == f"{experiment.decision['tasks']['embedding']['tir']['mean']:+.1f}%"
    joint = next(row for row in tables["scores_embedding"].rows if row[0].text == "Joint, one adapter")
    assert "†" in joint[-1].text, "a loss of 9% on 240 queries is significant"


def test_files_of_tables(experiments: Get) -> None:
    experiment = Experiment.read(experiments("pass"))
    tables = write_tables(experiment)
    for table in tables:
        assert (experiment.folder / "tables" / f"{table.name}.md").read_text("utf-8") == table.markdown()
        assert (experiment.folder / "tables" / f"{table.name}.tex").read_text("utf-8") == table.latex()
    assert not list((experiment.folder / "tables").glob("*.tmp"))


@pytest.mark.parametrize(
    "variant", ["pass", "fail", "marginal", "negative", "one_seed", "underpowered", "wild", "arms"]
)
def test_terminal_summary_fits_eighty_columns(experiments: Get, variant: str) -> None:
    folder = experiments(variant)
    decision, results = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("decision", "results"))
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=False).print(terminal_summary(decision, results))
    text = stream.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert decision["verdict"] in text and "embedding" in text and "reranking" in text
    assert ("preliminary" in text.lower()) == decision["preliminary"]
    assert text.count("underpowered") == (variant == "underpowered")
