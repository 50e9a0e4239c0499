"""Figures: written for every kind of experiment, repeatable, themed for the page, and without text on text."""

from __future__ import annotations

import itertools
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from unimoer.report import arm_plots, figures, plots
from unimoer.report.figures import THEMED, write_figures
from unimoer.report.files import Experiment

Get = Callable[[str], Path]
ARM_DRAWINGS = [arm_plots.draw_arms, arm_plots.draw_routing]
DRAWINGS = [plots.draw_interference, plots.draw_scores, plots.draw_training, plots.draw_conflicts]


def test_files_and_svg(experiments: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(experiments("pass"), tmp_path / "experiment")
    drawn = write_figures(Experiment.read(folder))
    assert [figure.name for figure in drawn] == ["interference", "scores", "training", "conflicts"]
    for figure in drawn:
        png = (folder / "figures" / f"{figure.name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert width == round(200 * plots.WIDTH) and 300 < height < 1500
        assert (folder / "figures" / f"{figure.name}.pdf").read_bytes().startswith(b"%PDF")
        assert figure.svg.startswith("<svg") and 'role="img"' in figure.svg
        assert not any(colour in figure.svg for colour in THEMED), "a fixed colour would vanish in one of the themes"
        ids = re.findall(r'\bid="([^"]+)"', figure.svg)
        assert all(name.startswith(f"{figure.name}-") for name in ids)
        assert set(re.findall(r'href="#([^"]+)"', figure.svg)) <= set(ids)
        assert set(re.findall(r"url\(#([^)]+)\)", figure.svg)) <= set(ids)
    assert len(list((folder / "figures").iterdir())) == 2 * len(drawn)


def test_drawn_twice_is_the_same_bytes(experiments: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(experiments("one_seed"), tmp_path / "experiment")
    first = write_figures(Experiment.read(folder))
    content = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert write_figures(Experiment.read(folder)) == first
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == content


def test_without_logs_two_figures_remain(experiments: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(experiments("no_logs"), tmp_path / "experiment")
    assert [figure.name for figure in write_figures(Experiment.read(folder))] == ["interference", "scores"]


def test_style_stays_in_its_context(experiments: Get, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    write_figures(Experiment.read(shutil.copytree(experiments("one_dataset"), tmp_path / "experiment")))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("variant", "draw"),
    [(variant, draw) for draw in DRAWINGS for variant in ("pass", "wild")]
    + [(variant, draw) for draw in DRAWINGS[:2] for variant in ("one_dataset", "twelve_datasets")]
    + [(variant, draw) for draw in ARM_DRAWINGS for variant in ("arms", "arms_lose")],
)
def test_no_text_lies_on_text_or_leaves_the_figure(
    experiments: Get, variant: str, draw: Callable[[Experiment], Figure | None]
) -> None:
    with matplotlib.rc_context(figures._STYLE):
        figure = draw(Experiment.read(experiments(variant)))
        assert figure is not None
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    undrawn = _undrawn(figure)
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()).padded(-0.5))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in undrawn
    ]
    assert len(boxes) > 5
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), f"'{first}' lies on '{second}'"
    page = figure.bbox
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text


def _undrawn(figure: Figure) -> set[int]:
    """Labels of ticks outside their axis' limits: they exist, and are never drawn."""
    found = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not limits[0] <= tick.get_loc() <= limits[1]:
                    found |= {id(tick.label1), id(tick.label2)}
    return found
