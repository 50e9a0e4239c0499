"""What every test may use. Nothing here reaches a network or the user's own cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# importlib mode puts no folder of tests on the path, and tiny.py is for all of them.
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

import tiny
from unimoer import UniMoER
from unimoer.data import write_beir
from unimoer.model.checkpoint import save_model

# The tensors are tiny, and one thread gives the same bits everywhere.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    """Mined negatives go to a folder of this session; only tests of the embedded assets see the real one."""
    if "assets" not in request.keywords:
        monkeypatch.setenv("UNIMOER_CACHE", str(shared_cache))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny base model by family, written at its first use. Tests that change files must copy it."""
    root = tmp_path_factory.mktemp("bases")

    def get(family: str) -> Path:
        folder = root / family
        return folder if folder.exists() else tiny.save_base(family, folder)

    return get


@pytest.fixture(scope="session")
def base(bases: Callable[[str], Path]) -> Path:
    """The tiny Qwen3."""
    return bases("qwen3")


@pytest.fixture(scope="session")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One LoRA on the tiny Qwen3, no longer neutral. Tests that change files must copy it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-model"
    save_model(tiny.build(base, noise=0.3), folder)
    return folder


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> UniMoER:
    """That checkpoint, loaded as users do."""
    return UniMoER.load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two BEIR folders by domain."""
    root = tmp_path_factory.mktemp("data")
    for domain in tiny.THINGS:
        write_beir(tiny.dataset(domain), root / domain)
    return {domain: root / domain for domain in tiny.THINGS}


@pytest.fixture
def experiment(base: Path, data: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """`tiny.experiment` over the tiny Qwen3 and both domains."""

    def make(**changes: Any) -> dict[str, Any]:
        return tiny.experiment(base, data, **changes)

    return make
