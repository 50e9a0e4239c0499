"""Numbers and tables: text that Markdown, LaTeX and a terminal print as it is meant."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from unimoer.report import text
from unimoer.report.sections import build_sections
from unimoer.report.study import StudyFolder
from unimoer.report.table import Cell, Table, escape_latex, percentage, scored
from unimoer.schema import Cell as Number

Get = Callable[[str], StudyFolder]


def test_numbers() -> None:
    assert text.metric_label("ndcg@10") == "nDCG@10" and text.metric_label("other") == "other"
    assert text.score(-0.0004) == "0.000" and text.score(-0.02, signed=True) == "−0.020" and text.score(None) == "–"
    assert text.percent(2, signed=True) == "+2.0%" and text.percent(55.4, decimals=0) == "55%"
    assert text.interval((None, 0.2)) == "" and text.interval((-0.1, 0.2), 1) == "[−0.1, 0.2]"
    assert text.ratio(Number(mean=1.0)) == "+1.0%, no interval"
    assert [text.p_value(value) for value in (None, 0.0002, 0.0423)] == ["–", "<0.001", "0.042"]
    assert [text.duration(seconds) for seconds in (59.4, 59.6, 3599, 3900, None)] == [
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 05 min",
        "–",
    ]
    assert [text.compact(value) for value in (50, 1600, 1_130_000, 0.5)] == ["50", "1.6k", "1.13M", "0.5"]
    assert text.listed(["a"]) == "a" and text.listed(["a", "b", "c"]) == "a, b and c"
    assert text.plural(1, "seed") == "1 seed" and text.plural(1200, "seed") == "1,200 seeds"


def test_cells_of_numbers() -> None:
    number = Number(mean=0.5, ci95=(0.4, 0.6))
    assert str(scored(number)) == "0.500 [0.400, 0.600]" and str(scored(None)) == "–"
    assert str(percentage(Number(mean=-3.0, ci95=(-9.0, 3.0)))) == "−3.0% [−9.0, 3.0]"


def test_latex_escapes() -> None:
    assert escape_latex("R&D_50% #1 {a} $x ~ ^ \\") == (
        r"R\&D\_50\% \#1 \{a\} \$x \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape_latex("−0.1 ±2 <0.001") == r"$-$0.1 $\pm$2 \textless{}0.001"


def test_renderings_of_a_small_table() -> None:
    rows = [["a|b", Cell("1", "[0, 2]", bold=True)], ["", "2"]]
    table = Table("t", "A_b", ["x|y", "n"], rows, rules=frozenset({1}), notes="<5%")
    markdown = "**A_b**\n\n| x\\|y | n |\n| :-- | --: |\n| a\\|b | **1 [0, 2]** |\n|  | 2 |\n\n<5%\n"
    assert table.markdown() == markdown
    latex = table.latex()
    assert r"\begin{tabular}{lr}" in latex and r"\label{tab:t}" in latex
    assert r"a|b & \textbf{1 {\footnotesize [0, 2]}} \\" in latex
    assert latex.count(r"\midrule") == 2 and latex.count(r"\begin{") == latex.count(r"\end{")
    wide = Table("w", "", [str(number) for number in range(9)], [["0"] * 9])
    assert r"\begin{table*}" in wide.latex() and r"\end{table*}" in wide.latex()


def test_a_name_that_does_not_fit_is_folded() -> None:
    name = "a-router-with-a-name-of-more-than-forty-characters"
    output = io.StringIO()
    Console(file=output, width=40).print(Table("t", "", ["arm", "score"], [[name, "0.123"]]).rich())
    assert max(map(len, output.getvalue().splitlines())) <= 40
    assert name in re.sub(r"0\.123|\s", "", output.getvalue())


@pytest.mark.parametrize(
    "name", ["inconclusive", "one_seed", "wild", "no_logs", "many_collections", "routing", "curve", "grid"]
)
def test_every_table_is_rectangular_and_complete(studies: Get, name: str) -> None:
    sections = build_sections(studies(name))
    tables = [table for section in sections.values() for table in (*section.tables, *section.folded)]
    names = [table.name for table in tables]
    assert len(names) == len(set(names)) >= 7, "two tables would share a file"
    for table in tables:
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows), table.name
        assert not any(re.search("nan|None", str(cell)) for row in table.cells for cell in row), table.name
        lines = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + len(table.rows)
        unescaped = [re.sub(r"\\[&%$#_{}]", "", line).count("&") for line in lines]
        assert set(unescaped) == {len(table.columns) - 1}
