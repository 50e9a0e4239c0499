"""The page: one file, no request, everything escaped, and built from the files of the study alone."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from unimoer.errors import UserError
from unimoer.report.html import build_report
from unimoer.report.sections import build_sections
from unimoer.report.study import StudyFolder
from unimoer.report.terminal import summary

Get = Callable[[str], Path]
VOID = {"meta", "br", "link", "img", "use", "path", "rect", "image", "input", "hr"}


class Balance(HTMLParser):
    """Checks that tags nest, and collects every address the page could ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, tag


@pytest.mark.parametrize("name", ["useless", "one_seed", "no_logs", "routing", "curve", "grid"])
def test_one_file_with_every_section(pages: Get, name: str) -> None:
    page = pages(name)
    text = page.read_text("utf-8")
    study = StudyFolder.read(page.parent)
    sections = build_sections(study)
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in parser.addresses)
    assert not parser.tags & {"script", "link", "iframe", "img"}
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert not re.search(r"\b(nan|None|Undefined)\b", re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.S))
    assert re.findall(r'<section id="([a-z_]+)">', text) == list(sections)
    assert text.count("<svg") == sum(len(section.drawings) for section in sections.values())

    lead = sections["verdict"].lead if "verdict" in sections else None
    assert f"<h1>{html.escape(lead.headline if lead else study.results.name)}</h1>" in text
    assert ("PRELIMINARY" in text) == (name == "one_seed")
    if lead:
        assert f'class="badge {lead.badge}"' in text
        assert all(html.escape(sentence) in text for sentence in lead.sentences)

    markdown = (page.parent / "report.md").read_text("utf-8")
    assert re.findall(r"^## (.*)$", markdown, re.M) == [section.title for section in sections.values()]
    images = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert len(images) == text.count("<svg") and all((page.parent / image).exists() for image in images)
    for section in sections.values():
        for table in (*section.tables, *section.folded):
            assert (page.parent / "tables" / f"{table.name}.md").read_text("utf-8") == table.markdown()
            assert (page.parent / "tables" / f"{table.name}.tex").exists()


def test_rebuilt_from_the_study_s_files_alone_and_repeatable(pages: Get, tmp_path: Path) -> None:
    built = pages("curve")
    folder = shutil.copytree(built.parent, tmp_path / "elsewhere")
    (folder / "plan.json").unlink()
    assert build_report(folder).read_bytes() == built.read_bytes()
    assert (folder / "report.md").read_bytes() == (built.parent / "report.md").read_bytes()
    assert not list(folder.rglob("*.tmp*"))


def test_everything_from_files_is_escaped(folders: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("one_collection"), tmp_path / "study")
    evil = "<script>alert(1)</script>&"
    for name in ("decision", "results"):
        path = folder / f"{name}.json"
        text = (
            path.read_text("utf-8")
            .replace('"hpo"', json.dumps(evil))
            .replace('"name": "kill-gate"', f'"name": "{evil}"')
        )
        path.write_text(text, "utf-8")
    text = build_report(folder).read_text("utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)") > 5


def test_an_amendment_is_on_the_page_in_the_markdown_and_in_the_terminal(folders: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("amended"), tmp_path / "study")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    results["sections"] = ["verdict"]
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    page = build_report(folder)
    output = io.StringIO()
    Console(file=output, width=300).print(summary(folder))
    for text in (html.unescape(page.read_text("utf-8")), (folder / "report.md").read_text("utf-8"), output.getvalue()):
        assert "criterion.pass_at: 2 -> 7" in text and "2025-06-02T09:30:00+00:00" in text


def test_missing_broken_and_foreign_files_are_one_line(folders: Get, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: missing; `unimoer analyze`"):
        build_report(tmp_path)
    folder = shutil.copytree(folders("one_collection"), tmp_path / "study")
    content = (folder / "decision.json").read_text("utf-8")
    (folder / "decision.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"decision\.json:1: broken JSON"):
        build_report(folder)
    (folder / "decision.json").write_text(content.replace('"supported"', '"interval_verdict"'), "utf-8")
    with pytest.raises(UserError, match=r"decision\.json: .*another version"):
        build_report(folder)


@pytest.mark.parametrize("name", ["inconclusive", "useless", "wild", "routing", "curve", "grid", "amended"])
def test_the_terminal_fits_80_columns_and_cuts_no_name(folders: Get, name: str) -> None:
    output = io.StringIO()
    Console(file=output, width=80, markup=False, emoji=False).print(summary(folders(name)))
    text = output.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    study = StudyFolder.read(folders(name))
    if study.decision:
        plain = " ".join(text.split())
        assert study.decision.plain.capitalize() in plain and f" {study.decision.verdict} " in plain
        assert plain.index(study.decision.plain.capitalize()) < plain.index(study.decision.verdict)
    if study.results.recovery:
        for arm in study.joint_arms:
            assert study.label(arm) in text
    if study.results.points:
        assert "specialist" in text and "moe" in text


def test_report_needs_no_model_code() -> None:
    unwanted = {"torch", "transformers", "unimoer.experiments", "unimoer.config", "unimoer.data"}
    code = f"import sys, unimoer.report.html, unimoer.report.terminal; print(sorted({unwanted} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
