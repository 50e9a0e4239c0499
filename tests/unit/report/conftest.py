"""Synthetic study folders by name, and their reports; see studies.py."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unimoer.report.html import build_report
from unimoer.report.study import StudyFolder

_spec = importlib.util.spec_from_file_location("synthetic_studies", Path(__file__).with_name("studies.py"))
assert _spec and _spec.loader
synthetic = importlib.util.module_from_spec(_spec)
sys.modules["synthetic_studies"] = synthetic
_spec.loader.exec_module(synthetic)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a study by name, written once a session: tests that change files must copy it."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in written:
            written[name] = synthetic.STUDIES[name](tmp_path_factory.mktemp(name) / "study")
        return written[name]

    return get


@pytest.fixture(scope="session")
def studies(folders: Callable[[str], Path]) -> Callable[[str], StudyFolder]:
    return lambda name: StudyFolder.read(folders(name))


@pytest.fixture(scope="session")
def pages(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The report of a study, built once in a copy of its folder; returns the page."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            copy = shutil.copytree(folders(name), tmp_path_factory.mktemp("reports") / name)
            built[name] = build_report(copy)
        return built[name]

    return get
