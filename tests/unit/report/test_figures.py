"""Figures: written for every kind of study, repeatable, themed for the page, and without text on text."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from unimoer.report import draw
from unimoer.report.figures import themed_svg, write_figures
from unimoer.report.section import Drawing
from unimoer.report.sections import SECTIONS, conflicts
from unimoer.report.study import StudyFolder
from unimoer.schema import Cell

Get = Callable[[str], StudyFolder]


def drawing(study: StudyFolder, section: str) -> Drawing:
    found = SECTIONS[section](study)
    assert found is not None
    return found.drawings[0]


def drawn(study: StudyFolder, section: str) -> Figure:
    with matplotlib.rc_context(draw.STYLE):
        figure = drawing(study, section).draw()
        figure.set_dpi(200)  # of the files: letters are wider there than in proportion
        FigureCanvasAgg(figure).draw()
    return figure


def test_files_and_svg_are_themed_and_repeatable(studies: Get, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    wanted = [drawing(studies("inconclusive"), name) for name in ("verdict", "conflicts")]
    written = write_figures(tmp_path, wanted)
    content = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(content) == {f"{name}.{suffix}" for name in written for suffix in ("png", "pdf")}
    for name, figure in written.items():
        width, height = struct.unpack(">II", content[f"{name}.png"][16:24])
        assert width == round(200 * draw.WIDTH) and 300 < height < 1500
        assert content[f"{name}.pdf"].startswith(b"%PDF")
        assert figure.svg.startswith("<svg") and 'role="img"' in figure.svg
        assert not any(colour in figure.svg for colour in draw.THEMED), "a fixed colour would vanish in one theme"
        ids = re.findall(r'\bid="([^"]+)"', figure.svg)
        assert all(one.startswith(f"{name}-") for one in ids)
        assert set(re.findall(r'href="#([^"]+)"', figure.svg)) <= set(ids)
        assert set(re.findall(r"url\(#([^)]+)\)", figure.svg)) <= set(ids)
    assert write_figures(tmp_path, wanted) == written
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == content
    assert dict(matplotlib.rcParams) == before, "the style must stay in its context"


def test_a_title_cannot_break_out_of_the_svg() -> None:
    svg = themed_svg('<?xml?><svg width="1pt" height="2pt"></svg>', "x", '"><script>\\1')
    assert svg == '<svg role="img" aria-label="&quot;&gt;&lt;script&gt;\\1"></svg>'


@pytest.mark.parametrize("name", ["inconclusive", "routing"])
def test_conflict_panels_share_one_scale_so_that_noise_looks_pale(studies: Get, name: str) -> None:
    figure = drawn(studies(name), "conflicts")
    meshes = [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)]
    panels = meshes[:3]
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["Between tasks", "Labels shuffled", "Ceiling"]
    assert len({mesh.get_clim() for mesh in panels}) == 1 and len({mesh.get_cmap().name for mesh in panels}) == 1
    low, high = panels[0].get_clim()
    assert -low == high == pytest.approx(max(float(np.abs(mesh.get_array()).max()) for mesh in panels))


def test_the_ceiling_is_the_root_of_means_and_missing_below_zero() -> None:
    first, second = np.array([[0.4, -0.1, np.nan]]), np.array([[0.1, 0.5, 0.5]])
    np.testing.assert_allclose(conflicts._ceiling(first, second), [[0.2, np.nan, np.nan]])


@pytest.mark.parametrize(("name", "section"), [("inconclusive", "verdict"), ("routing", "arms"), ("curve", "points")])
def test_figures_of_differences_show_their_minimum_detectable_effect(studies: Get, name: str, section: str) -> None:
    figure = drawn(studies(name), section)
    shapes = [shape for axes in figure.axes for shape in (*axes.patches, *axes.collections)]
    assert any(
        to_hex(
            shape.get_facecolor().reshape(-1, 4)[0]
            if hasattr(shape.get_facecolor(), "reshape")
            else shape.get_facecolor()
        )
        == draw.UNDETECTABLE
        for shape in shapes
    )
    words = {text.get_text() for text in figure.legends[0].get_texts()}
    assert "undetectable" in words
    if section != "points":
        assert {"filled: excludes 0", "open: includes 0"} <= words


def test_training_marks_where_mined_negatives_begin(studies: Get) -> None:
    figure = drawn(studies("inconclusive"), "training")
    embedding, reranking = figure.axes
    dotted = [line for line in reranking.lines if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in dotted] == [22]
    assert not [line for line in embedding.lines if len(set(line.get_xdata())) == 1]
    assert "mined negatives begin" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_points_have_a_logarithmic_axis_for_steps_and_bm25(studies: Get) -> None:
    figure = drawn(studies("curve"), "points")
    assert len(figure.axes) == 6 and {axes.get_xscale() for axes in figure.axes} == {"log"}
    bm25 = [line for line in figure.axes[0].lines if set(line.get_ydata()) == {0.585}]
    assert len(bm25) == 1


def test_an_axis_holds_ordinary_intervals_whole_and_cuts_an_outlier() -> None:
    ordinary = [Cell(mean=1.0, ci95=(-1.0, 3.0)) for _ in range(9)]
    low, high = draw.span(ordinary, 2.0)
    assert low < -1.0 and high > 3.0
    _, cut = draw.span([*ordinary, Cell(mean=500.0, ci95=(400.0, 600.0))])
    assert 3.0 < cut < 60.0
    assert draw.span([Cell(mean=0.0, ci95=(0.0, 0.0))])[0] < 0


@pytest.mark.parametrize(
    ("name", "section"),
    [(name, section) for name in ("inconclusive", "wild") for section in ("verdict", "scores", "conflicts", "training")]
    + [(name, section) for name in ("one_collection", "many_collections") for section in ("verdict", "scores")]
    + [("routing", "arms"), ("routing", "routing"), ("curve", "points"), ("grid", "points")],
)
def test_no_text_lies_on_text_or_leaves_the_figure(studies: Get, name: str, section: str) -> None:
    figure = drawn(studies(name), section)
    undrawn = _undrawn(figure)
    boxes = [
        (text.get_text(), text.get_window_extent(figure.canvas.get_renderer()).padded(-0.5))
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
