"""The page: one file, no request, everything escaped, and built from the result files alone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from unimoer.errors import UserError
from unimoer.report import wording
from unimoer.report.html import build_report

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


@pytest.fixture(scope="module")
def reports(experiments: Get, tmp_path_factory: pytest.TempPathFactory) -> Get:
    """The report of a variant, built once in a copy of its folder; returns the page."""
    pages: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in pages:
            pages[variant] = build_report(
                shutil.copytree(experiments(variant), tmp_path_factory.mktemp("reports") / variant)
            )
        return pages[variant]

    return get


@pytest.mark.parametrize(
    "variant",
    ["pass", "marginal", "negative", "one_seed", "underpowered", "twelve_datasets", "wild", "no_logs", "arms"],
)
def test_one_file_that_says_what_the_decision_says(reports: Get, variant: str) -> None:
    page = reports(variant)
    text = page.read_text("utf-8")
    decision = json.loads((page.parent / "decision.json").read_text("utf-8"))
    assert page.name == "report.html"
    assert f'class="badge {decision["verdict"]}"' in text and f"<h1>{wording.headline(decision)}</h1>" in text
    assert ("PRELIMINARY" in text) == decision["preliminary"]

    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in parser.addresses)
    assert not parser.tags & {"script", "link", "iframe", "img"}
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert not re.search(r"\b(nan|None|Undefined)\b", re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.S))
    assert text.count("<svg") == {"no_logs": 2, "arms": 6}.get(variant, 4)
    assert ('id="arms"' in text) == ('id="routing"' in text) == (variant == "arms")
    for task, found in decision["tasks"].items():
        assert html.escape(wording.task_sentence(task, found, "ndcg@10"), quote=True) in text.replace("&#39;", "&#x27;")

    markdown = (page.parent / "report.md").read_text("utf-8")
    assert wording.headline(decision) in markdown and "## Provenance" in markdown
    assert ("## Arms" in markdown) == ("## Routing" in markdown) == (variant == "arms")
    for image in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (page.parent / image).exists()


def test_provenance_is_there(reports: Get) -> None:
    text = reports("pass").read_text("utf-8")
    for fact in (
        "unimoer run kill-gate --quick",
        "0123456789abcdef0123456789abcdef01234567",
        "Example CPU @ 2.0 GHz, 2 cores, 15.6 GB memory, device cpu",
        "torch 2.13.0",
        "sha256:",
        "42, 123, 456",
        "rank: 8",
    ):
        assert fact in text


def test_runs_that_differ_are_said_to(experiments: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(experiments("one_seed"), tmp_path / "experiment")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    results["provenance"]["differing"] = {"git_commit": {"a": "1", "b": "2"}}
    results["provenance"]["git_dirty"] = True
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    text = build_report(folder).read_text("utf-8")
    assert "Runs differ in" in text and "with uncommitted changes" in text


def test_rebuilt_from_result_files_alone_and_repeatable(reports: Get, tmp_path: Path) -> None:
    built = reports("pass")
    folder = shutil.copytree(built.parent, tmp_path / "elsewhere")
    for path in folder.glob("runs/*/eval"):
        shutil.rmtree(path)
    (folder / "plan.json").unlink()
    assert build_report(folder).read_bytes() == built.read_bytes()
    assert (folder / "report.md").read_bytes() == (built.parent / "report.md").read_bytes()
    assert not list(folder.rglob("*.tmp*"))


def test_everything_from_files_is_escaped(experiments: Get, tmp_path: Path) -> None:
    folder = shutil.copytree(experiments("one_seed"), tmp_path / "experiment")
    evil = "<script>alert(1)</script>&"
    for name in ("decision", "results"):
        text = (folder / f"{name}.json").read_text("utf-8")
        (folder / f"{name}.json").write_text(
            text.replace('"hpo"', json.dumps(evil)).replace("kill-gate", evil), "utf-8"
        )
    text = build_report(folder).read_text("utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text


def test_missing_and_broken_files_are_one_line(experiments: Get, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decision\.json: missing; `unimoer analyze`"):
        build_report(tmp_path)
    folder = shutil.copytree(experiments("one_seed"), tmp_path / "experiment")
    (folder / "results.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"results\.json:1: broken JSON"):
        build_report(folder)


def test_report_needs_no_model_code() -> None:
    unwanted = {"torch", "transformers", "unimoer.experiments"}
    code = f"import sys, unimoer.report.html; print(sorted({unwanted} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
