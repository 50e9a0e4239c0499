"""Writes the figures of a report: PNG and PDF for papers, SVG for the page, whose theme its colours follow."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from unimoer.errors import UserError
from unimoer.report.draw import STYLE, THEMED
from unimoer.report.section import Drawing


@dataclass(frozen=True)
class FigureFile:
    name: str
    title: str
    caption: str
    svg: str
    """Ready to be inlined: no XML header, no fixed size, the page's colours."""


def write_figures(folder: Path, drawings: Iterable[Drawing]) -> dict[str, FigureFile]:
    """Draw into `figures/<name>.png` (200 dpi) and `.pdf`; returns them by name, as SVG.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        return {drawing.name: _write(folder / "figures", drawing) for drawing in drawings}
    except OSError as error:
        raise UserError(f"{folder / 'figures'}: cannot be written: {error.strerror}") from error


def themed_svg(svg: str, name: str, title: str) -> str:
    """An SVG for inlining: ids made unique to the figure, fixed colours replaced by the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    label = f' role="img" aria-label="{escape(title, quote=True)}"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', lambda match: match[1] + label, svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two inlined SVGs share one name space of ids.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _write(folder: Path, drawing: Drawing) -> FigureFile:
    # A context, not global settings: a caller's own plots keep their style.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": drawing.name}):
        figure = drawing.draw()
        _save(figure, folder / f"{drawing.name}.png", dpi=200)
        figure.set_layout_engine("none")  # the places are found; finding them again would double the time
        # Without a date, equal results give equal files.
        _save(figure, folder / f"{drawing.name}.pdf", metadata={"CreationDate": None})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=200, transparent=True, metadata={"Date": None})
    svg = themed_svg(buffer.getvalue(), drawing.name, drawing.title)
    return FigureFile(drawing.name, drawing.title, drawing.caption, svg)


def _save(figure: Figure, path: Path, **options: Any) -> None:
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(temporary, **options)
    temporary.replace(path)
