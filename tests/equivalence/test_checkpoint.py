"""What is loaded is bit for bit what was saved, and whatever does not fit is an error of one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from unimoer.errors import UserError
from unimoer.model.checkpoint import load_model, save_model
from unimoer.model.unified import UnifiedModel

VARIANTS: dict[str, dict[str, Any]] = {
    "mean, linear": {},
    "last, yes/no, left": {
        "embedding": {"pooling": "last"},
        "reranking": {"pooling": "last", "head": "yes_no"},
        "padding": "left",
        "prompts": {"instruction": "Find the thing", "max_query_tokens": 12, "max_document_tokens": 20},
    },
    "bfloat16, two layers, two targets": {
        "dtype": "bfloat16",
        "layers": 2,
        "adapter": {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"], "dropout": 0.1},
    },
}


def outputs(model: UnifiedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts through the model's own prompts: templates and budgets are part of what is saved."""
    texts = ["where is the red kettle", "a plate " * 30]
    prompter = model.prompter
    with torch.inference_mode():
        vectors = model.embed(tiny.batch([*prompter.queries(texts), *prompter.documents(texts)], model.config.padding))
        return vectors, model.score(tiny.batch(prompter.pairs(texts, texts[::-1]), model.config.padding))


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    save_model(tiny.build(base, noise=0.1), tmp_path / "final")
    return tmp_path / "final"


def change(folder: Path, **fields: Any) -> None:
    path = folder / "unimoer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path) -> str:
    """The one line that says why a checkpoint is not loaded."""
    with pytest.raises(UserError) as caught:
        load_model(folder, tiny.CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_a_round_trip_is_bit_equal(variant: str, family: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    model = tiny.build(bases(family), noise=0.1, **VARIANTS[variant])
    expected = outputs(model)
    save_model(model, tmp_path / "final")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter.safetensors", "final", "unimoer.json"]
    torch.manual_seed(99)
    loaded = load_model(tmp_path / "final", tiny.CPU)
    assert loaded.config == model.config
    for found, wanted in zip(outputs(loaded), expected, strict=True):
        assert torch.equal(found, wanted)
    for name, parameter in model.trainable().items():
        assert torch.equal(loaded.trainable()[name], parameter), name
    save_model(loaded, tmp_path / "again")
    for path in (tmp_path / "final").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_saving_neither_changes_the_mode_nor_leaves_a_half_folder(base: Path, tmp_path: Path) -> None:
    model = tiny.build(base).train()
    save_model(model, tmp_path / "final")
    assert model.training
    tiny.stir(model, 0.1)
    save_model(model, tmp_path / "final")
    assert torch.equal(outputs(load_model(tmp_path / "final", tiny.CPU))[0], outputs(model.eval())[0])
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_tensors_that_do_not_fit_are_named(saved: Path) -> None:
    file = saved / "adapter.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]

    save_file({name: tensor for name, tensor in tensors.items() if name != first}, file)
    assert f"lacks {first} (1 missing, 0 unexpected)" in refused(saved)
    save_file({**tensors, "head.other": torch.zeros(1)}, file)
    assert "has head.other, which the model has not (0 missing, 1 unexpected)" in refused(saved)
    save_file({**tensors, first: tensors[first][:-1].clone()}, file)
    rows, columns = tensors[first].shape
    assert f"{first} is ({rows - 1}, {columns}), the model needs ({rows}, {columns})" in refused(saved)


def test_a_damaged_or_missing_file_is_named(saved: Path, tmp_path: Path) -> None:
    file = saved / "adapter.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-20], whole[:5], b""):
        file.write_bytes(damaged)
        assert "adapter.safetensors: damaged safetensors file" in refused(saved)
    file.unlink()
    assert "adapter.safetensors: no such file" in refused(saved)
    description = saved / "unimoer.json"
    description.write_text(description.read_text()[:40])
    assert "broken JSON" in refused(saved)
    with pytest.raises(UserError, match=r"unimoer\.json: no such file"):
        load_model(tmp_path / "nowhere", tiny.CPU)


def test_another_format_is_refused(saved: Path) -> None:
    change(saved, format=99)
    assert "checkpoint format 99, this version reads 1" in refused(saved)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', '"text"'])
def test_a_description_of_something_else_is_refused(saved: Path, content: str) -> None:
    (saved / "unimoer.json").write_text(content)
    refused(saved)


@pytest.mark.parametrize("field", ["model", "base_fingerprint", "golden"])
def test_a_description_that_lacks_a_field_is_refused(saved: Path, field: str) -> None:
    path = saved / "unimoer.json"
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))
    assert field in refused(saved)


def test_a_model_setting_that_this_version_does_not_know_is_named(saved: Path) -> None:
    settings = json.loads((saved / "unimoer.json").read_text())["model"]
    change(saved, model={**settings, "router": "token"})
    assert "router" in refused(saved)


def test_another_base_is_refused(saved: Path, bases: Callable[[str], Path]) -> None:
    settings = json.loads((saved / "unimoer.json").read_text())["model"]
    change(saved, model={**settings, "base": str(bases("qwen2"))})
    assert "made on another base model" in refused(saved)


def test_a_base_that_changed_where_it_lies_is_refused(base: Path, tmp_path: Path) -> None:
    moving = tmp_path / "base"
    shutil.copytree(base, moving)
    save_model(tiny.build(moving), tmp_path / "final")
    tensors = load_file(moving / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.1
    save_file(tensors, moving / "model.safetensors", {"format": "pt"})
    assert "made on another base model" in refused(tmp_path / "final")


def test_outputs_that_drifted_are_refused(saved: Path, base: Path) -> None:
    """The same tensors under another template or budget rank differently, and quietly."""
    golden = json.loads((saved / "unimoer.json").read_text())["golden"]
    change(saved, golden={**golden, "score": golden["score"] + 0.1})
    assert "golden outputs differ" in refused(saved)
    assert torch.isfinite(outputs(load_model(saved, tiny.CPU, verify=False))[0]).all()
    settings = json.loads((saved / "unimoer.json").read_text())["model"]
    for field, template in (("query", "find {query}"), ("document", "text {document}")):
        prompts = {**settings["prompts"], field: template}
        change(saved, model={**settings, "prompts": prompts}, golden=golden)
        assert "golden outputs differ" in refused(saved)
    # Its own texts, whatever this version's are; older files name none, and no document's vector.
    change(saved, model=settings, golden={**golden, "query": "something else"})
    assert "golden outputs differ" in refused(saved)
    change(saved, golden={key: golden[key] for key in ("embedding", "score", "dtype")})
    load_model(saved, tiny.CPU)


def test_another_tokenizer_of_the_same_base_is_refused(base: Path, tmp_path: Path) -> None:
    moving = tmp_path / "base"
    shutil.copytree(base, moving)
    save_model(tiny.build(moving), tmp_path / "final")
    content = json.loads((moving / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][::3]
    content["model"]["merges"] = [m for m in content["model"]["merges"] if len(m[0]) == len(m[1]) == 1]
    (moving / "tokenizer.json").write_text(json.dumps(content))
    assert "golden outputs differ" in refused(tmp_path / "final")


def test_a_float32_machine_loads_what_a_bfloat16_machine_saved(base: Path, tmp_path: Path) -> None:
    """`dtype: auto` follows the hardware, so the two precisions have to verify against each other."""
    model = tiny.build(base, noise=0.1, dtype="bfloat16")
    save_model(model, tmp_path / "final")
    change(tmp_path / "final", model=tiny.model_config(base).model_dump(mode="json"))
    loaded = load_model(tmp_path / "final", tiny.CPU)
    assert tiny.relative(outputs(loaded)[0], outputs(model)[0]) < 5e-2
