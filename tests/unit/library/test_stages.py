"""Two stages as one LoRA on the first base, and the model that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from unimoer import UniMoER
from unimoer.assets.released import RELEASED
from unimoer.data.embedded import load_embedded
from unimoer.errors import UserError
from unimoer.files import read_json
from unimoer.model.checkpoint import save_model
from unimoer.model.export import export_model
from unimoer.model.stages import join_stages
from unimoer.runs import checkpoint_folder
from unimoer.runs.checkpoint import scores_folder
from unimoer.types import Task

TEXTS = ["The red kettle stands in the corner.", "A bench.", "find my red kettle"]


def stage(base: Path, folder: Path, rank: int, alpha: float, seed: int, **changes: Any) -> Path:
    adapter = {"rank": rank, "alpha": alpha}
    model = tiny.build(base, seed=seed, noise=0.1, adapter=adapter, **changes)
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def stages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The first stage, its merged base, and the second stage, of other rank and scale."""
    root = tmp_path_factory.mktemp("stages")
    first = stage(base, root / "first", 4, 8.0, 1)
    tiny_model = tiny.build(base, seed=1, noise=0.1, adapter={"rank": 4, "alpha": 8.0})
    [merged] = export_model(tiny_model, root / "merged", form="merged", tasks=(Task.EMBEDDING,))
    return first, merged, stage(merged, root / "last", 3, 9.0, 2)


def test_two_stages_are_one_lora_on_the_first_base(stages: tuple[Path, Path, Path], base: Path, tmp_path: Path) -> None:
    first, _, last = stages
    joined = join_stages(first, last, tiny.CPU)
    assert joined.config.base == str(base) and joined.config.adapter.rank == 7
    assert joined.config.adapter.alpha / joined.config.adapter.rank == 3.0
    own = UniMoER.load(last, device="cpu")
    folder = own.save(tmp_path / "joined", onto=first)
    again = UniMoER.load(folder, device="cpu")
    for kind in ("query", "document"):
        # Kept in bfloat16.
        np.testing.assert_allclose(again.encode(TEXTS, kind), own.encode(TEXTS, kind), atol=2e-2)
    pairs = [("red kettle", text) for text in TEXTS]
    np.testing.assert_allclose(again.score(pairs), own.score(pairs), atol=5e-2)
    # Its base lies on this machine alone, so the folder brings it along; by name it does not.
    assert (folder / "base").exists()
    named = own.save(tmp_path / "named", onto=first, base="reference")
    assert not (named / "base").exists() and read_json(named / "unimoer.json")["model"]["base"] == str(base)


def test_in_full_precision_nothing_is_lost(stages: tuple[Path, Path, Path]) -> None:
    first, _, last = stages
    joined, own = join_stages(first, last, tiny.CPU), UniMoER.load(last, device="cpu").model
    batch = tiny.batch(tiny.ids([5, 9, 20]))
    with torch.no_grad():
        assert tiny.relative(joined.embed(batch), own.embed(batch)) < 1e-5
        assert tiny.relative(joined.score(batch), own.score(batch)) < 1e-5


def test_a_stage_that_is_not_the_one_before_is_refused(
    stages: tuple[Path, Path, Path], base: Path, tmp_path: Path
) -> None:
    _, _, last = stages
    other = stage(base, tmp_path / "other", 4, 8.0, 5)
    with pytest.raises(UserError, match=r"was not trained on the base that .*other gives when it is merged"):
        join_stages(other, last, tiny.CPU)
    experts = {"rank": 4, "alpha": 8.0, "experts": {"embedding": 2, "reranking": 2}, "router": {"type": "hard"}}
    save_model(tiny.build(base, adapter=experts), tmp_path / "routed")
    with pytest.raises(UserError, match="routed: has routed experts; stages can be joined where both are one LoRA"):
        join_stages(tmp_path / "routed", last, tiny.CPU)
    narrow = {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]}
    save_model(tiny.build(base, adapter=narrow), tmp_path / "narrow")
    with pytest.raises(UserError, match="narrow: adapts other projections"):
        join_stages(tmp_path / "narrow", last, tiny.CPU)
    shallow = stage(base, tmp_path / "shallow", 4, 8.0, 1, layers=2)
    with pytest.raises(UserError, match=r"shallow: is of another model than .*: decoder\.layers\.2\."):
        join_stages(shallow, last, tiny.CPU)


def test_released_models_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(RELEASED) == ["smollm2-135m-search"]
    folder = checkpoint_folder(Path("smollm2-135m-search"))
    own = {"README.md", "adapter.safetensors", "unimoer.json"}
    # Those by which sentence-transformers opens it.
    others = {"modules.json", "config_sentence_transformers.json", "cross-encoder"}
    assert {path.name for path in folder.iterdir()} == own | others
    assert scores_folder(Path("smollm2-135m-search"), None) == Path("runs/smollm2-135m-search")
    with pytest.raises(UserError, match="no released model of that name; did you mean 'smollm2-135m-search'"):
        checkpoint_folder(Path("smollm2-135m-serch"))
    # A folder of one's own of that name comes first.
    (tmp_path / "smollm2-135m-search").mkdir()
    with pytest.raises(UserError, match="no finished checkpoint here"):
        checkpoint_folder(Path("smollm2-135m-search"))


@pytest.mark.assets
@pytest.mark.slow
def test_the_released_model_finds_and_reranks_what_it_should() -> None:
    """Golden outputs are verified at loading; a mean reciprocal rank as its card promises, on test queries."""
    model = UniMoER.load("smollm2-135m-search", device="cpu")
    data = load_embedded("cwe")
    judged = [(query, next(iter(grades))) for query, grades in list(data.split("test").items())[:16]]
    keys = list(data.corpus)[:60] + [document for _, document in judged]
    keys = list(dict.fromkeys(keys))
    vectors = model.encode([data.corpus[key].content for key in keys], "document")
    queries = model.encode([data.queries[query] for query, _ in judged], "query")
    order = np.argsort(-(queries @ vectors.T), axis=1)
    ranks = [list(row).index(keys.index(document)) for row, (_, document) in zip(order, judged, strict=True)]
    assert np.mean([1 / (rank + 1) for rank in ranks]) > 0.7
    first = 0
    data = load_embedded("hpo")
    for query, grades in list(data.split("test").items())[:8]:
        document = next(iter(grades))
        others = [data.corpus[key].content for key in list(data.corpus)[:250:50] if key != document]
        best = model.rerank(data.queries[query], [*others, data.corpus[document].content], top_k=1)
        first += best[0].index == len(others)
    assert first >= 7
