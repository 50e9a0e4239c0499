"""One table, and its renderings for documents and the terminal: Markdown, LaTeX with booktabs, rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from unimoer.report import text
from unimoer.schema import Interval

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": r"$-$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "–": "--",
}


Item = TypeVar("Item")


class Number(Protocol):
    """A cell of the schema, or anything else with a mean and an interval."""

    @property
    def mean(self) -> float | None: ...
    @property
    def ci95(self) -> Interval: ...


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    bold: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


def scored(number: Number | None, signed: bool = False) -> Cell:
    """A score, or a difference of scores, with its interval."""
    if number is None:
        return Cell(text.MISSING)
    return Cell(text.score(number.mean, signed), text.interval(number.ci95))


def percentage(number: Number | None, decimals: int = 1) -> Cell:
    """A ratio in percent with its interval."""
    if number is None or number.mean is None:
        return Cell(text.MISSING)
    return Cell(text.percent(number.mean, True, decimals), text.interval(number.ci95, decimals))


@dataclass(frozen=True)
class Table:
    """Rows of plain text; a row that starts a group of its own has a rule above it (`rules`, by row index)."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    text_columns: int = 1
    """How many of the first columns hold words and align left; the others are numbers."""
    rules: frozenset[int] = frozenset()
    notes: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        caption: str,
        items: Iterable[Item],
        columns: Sequence[tuple[str, Callable[[Item], Cell | str]]],
        **options: Any,
    ) -> Table:
        """A row for each item; columns of numbers that no item has are left out."""
        rows = [[show(item) for _, show in columns] for item in items]
        words = options.get("text_columns", 1)
        kept = [
            i for i in range(len(columns)) if i < words or any(str(row[i]) not in ("", text.MISSING) for row in rows)
        ]
        labels = [columns[index][0] for index in kept]
        return cls(name, caption, labels, [[row[index] for index in kept] for row in rows], **options)

    @property
    def cells(self) -> list[list[Cell]]:
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        def render(cell: Cell) -> str:
            content = _escape_markdown(str(cell))
            return f"**{content}**" if cell.bold and content else content

        align = [":--" if index < self.text_columns else "--:" for index in range(len(self.columns))]
        lines = [line([_escape_markdown(column) for column in self.columns]), line(align)]
        lines += [line([render(cell) for cell in row]) for row in self.cells]
        return "\n".join([f"**{self.caption}**", "", *lines, *(["", self.notes] if self.notes else []), ""])

    def latex(self) -> str:
        """A `table` float for the booktabs package, its label `tab:<name>`."""
        align = "l" * self.text_columns + "r" * (len(self.columns) - self.text_columns)
        body = []
        for index, row in enumerate(self.cells):
            if index in self.rules:
                body.append(r"\midrule")
            body.append(" & ".join(_latex_cell(cell) for cell in row) + r" \\")
        # A table of many columns spans both columns of a two-column paper.
        float_name = "table*" if len(self.columns) > 5 else "table"
        notes = rf"\par\smallskip\footnotesize {escape_latex(self.notes)}" if self.notes else ""
        lines = [
            "% needs \\usepackage{booktabs}",
            rf"\begin{{{float_name}}}[t]",
            r"\centering\small",
            rf"\caption{{{escape_latex(self.caption)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(escape_latex(column) for column in self.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([notes] if notes else []),
            rf"\end{{{float_name}}}",
        ]
        return "\n".join(lines) + "\n"

    def rich(self) -> RichTable:
        """For the terminal, without an outer border; names that do not fit are folded, never cut."""
        table = RichTable(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
            title=Text(self.caption),
            title_justify="left",
        )
        for index, column in enumerate(self.columns):
            words = index < self.text_columns
            table.add_column(column, justify="left" if words else "right", no_wrap=not words, overflow="fold")
        for index, row in enumerate(self.cells):
            table.add_row(
                *(Text(str(cell), style="bold" if cell.bold else "") for cell in row),
                end_section=index + 1 in self.rules,
            )
        return table


def escape_latex(content: str) -> str:
    """Text as LaTeX prints it: special characters escaped, signs in mathematics."""
    return "".join(_LATEX.get(character, character) for character in content)


def _latex_cell(cell: Cell) -> str:
    content = escape_latex(cell.text)
    if cell.interval:
        content += rf" {{\footnotesize {escape_latex(cell.interval)}}}"
    return rf"\textbf{{{content}}}" if cell.bold else content


def _escape_markdown(content: str) -> str:
    return content.replace("|", "\\|").replace("<", "&lt;")
