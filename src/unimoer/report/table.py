"""One table, and its two renderings for documents: Markdown and LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": r"$-$",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
}


@dataclass(frozen=True)
class Cell:
    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of plain text; a row that starts a group of its own has a rule above it (`rules`, by row index)."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    """How many of the first columns hold words and align left; the others are numbers."""
    rules: frozenset[int] = field(default_factory=frozenset)
    notes: str = ""

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        def render(cell: Cell) -> str:
            text = cell.text.replace("|", "\\|").replace("<", "&lt;")
            return f"**{text}**" if cell.bold and text else text

        align = [":--" if index < self.text_columns else "--:" for index in range(len(self.columns))]
        lines = [line([column.replace("|", "\\|") for column in self.columns]), line(align)]
        lines += [line([render(cell) for cell in row]) for row in self.rows]
        return "\n".join([f"**{self.caption}**", "", *lines, *(["", self.notes] if self.notes else []), ""])

    def latex(self) -> str:
        """A `table` float for the booktabs package, its label `tab:<name>`."""
        align = "l" * self.text_columns + "r" * (len(self.columns) - self.text_columns)
        body = []
        for index, row in enumerate(self.rows):
            if index in self.rules:
                body.append(r"\midrule")
            cells = [rf"\textbf{{{escape_latex(cell.text)}}}" if cell.bold else escape_latex(cell.text) for cell in row]
            body.append(" & ".join(cells) + r" \\")
        # A table of many columns spans both columns of a two-column paper.
        float_name = "table*" if len(self.columns) > 8 else "table"
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


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it: special characters escaped, minus and dagger in mathematics."""
    return "".join(_LATEX.get(character, character) for character in text)
