"""Loading a base: what is refused, what is frozen, where it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from unimoer.errors import UserError
from unimoer.model import backbone
from unimoer.model.backbone import load_backbone, resolve_device, resolve_dtype
from unimoer.model.checkpoint import fingerprint


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    return folder


def refused(base: str | Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(tiny.model_config(base, **changes), tiny.CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.")
    return message


def test_the_base_is_frozen_and_complete(base: Path) -> None:
    model, tokenizer = load_backbone(tiny.model_config(base), tiny.CPU)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.pad_token_id is not None
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["qwen3", "mistral_sliding"])
def test_only_the_first_layers_are_kept(family: str, bases: Callable[[str], Path]) -> None:
    whole, _ = load_backbone(tiny.model_config(bases(family)), tiny.CPU)
    cut, _ = load_backbone(tiny.model_config(bases(family), layers=2), tiny.CPU)
    assert len(cut.base_model.layers) == 2
    kept = cut.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in whole.state_dict().items() if name in kept)
    assert "model.layers: 9 asked for, but the model has 3" in refused(bases(family), layers=9)


def test_precision_of_the_base(base: Path) -> None:
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model, _ = load_backbone(tiny.model_config(base, dtype=name), tiny.CPU)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert resolve_dtype("auto", tiny.CPU) in (torch.float32, torch.bfloat16)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'}: no such folder" in refused(tmp_path / "nowhere")
    assert "./nowhere: no such folder" in refused("./nowhere")
    assert "no config.json in this folder" in refused(tmp_path)


def test_a_hub_model_without_network_or_cache() -> None:
    assert "someone/a-model-that-is-nowhere cannot be loaded from a folder or the hub" in refused(
        "someone/a-model-that-is-nowhere"
    )


def test_a_missing_gguf_file_and_one_that_is_none(tmp_path: Path) -> None:
    assert "no such GGUF file" in refused(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"not a model at all, but long enough to be read as one")
    refused(tmp_path / "model.gguf")


def test_a_gguf_file_gives_the_model_it_was_made_of(bases: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny.build(bases("qwen2"))
    texts, batch = ["where is the red kettle", "12\n\n日本 <|im_end|>"], tiny.batch(tiny.ids([5, 7]))
    path = tiny.write_gguf(bases("qwen2"), tmp_path / "tiny.gguf")
    # Converted the first time, read from the converted copy the second.
    for model in (tiny.build(path), tiny.build(path)):
        assert torch.equal(model.embed(batch), source.embed(batch))
        assert model.prompter.queries(texts) == source.prompter.queries(texts)
        assert fingerprint(model) == fingerprint(source)


def test_a_gguf_file_that_was_replaced_is_converted_again(bases: Callable[[str], Path], tmp_path: Path) -> None:
    path = tiny.write_gguf(bases("qwen2"), tmp_path / "tiny.gguf")
    before = fingerprint(tiny.build(path))
    changed = shutil.copytree(bases("qwen2"), tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.1
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    tiny.write_gguf(changed, path)
    assert fingerprint(tiny.build(path)) == fingerprint(tiny.build(changed)) != before


def test_an_embedded_model_that_is_none() -> None:
    assert "no embedded model 'smollm2'; did you mean 'smollm2-135m'?" in refused("embedded:smollm2")


def test_an_embedded_model_is_converted_once(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its GGUF file is asked for the first time only: the plain weights are enough afterwards."""
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path / "cache"))
    gguf = tiny.write_gguf(bases("qwen2"), tmp_path / "tiny.gguf")
    asked: list[Path] = []
    monkeypatch.setitem(backbone.EMBEDDED, "tiny", lambda: asked.append(gguf) or gguf)
    fingerprints = {fingerprint(tiny.build("embedded:tiny")) for _ in range(2)}
    assert asked == [gguf]
    assert fingerprints == {fingerprint(tiny.build(bases("qwen2")))}


def test_an_embedded_model_under_terms_is_refused_until_they_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIMOER_CACHE", str(tmp_path))
    monkeypatch.delenv("UNIMOER_ACCEPT_TERMS", raising=False)
    with pytest.raises(UserError) as caught:
        load_backbone(tiny.model_config("embedded:gemma3-270m"), tiny.CPU)
    message = str(caught.value)
    assert message.startswith("gemma3-270m is under the Gemma Terms of Use (https://ai.google.dev/gemma/terms)")
    assert "unimoer data fetch gemma3-270m" in message
    assert "\n" not in message


def test_pickled_weights_are_refused(copy: Path) -> None:
    """A folder with nothing but pytorch_model.bin, which only unpickling could read."""
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "safetensors" in refused(copy)


def test_pickled_weights_beside_safetensors_are_not_looked_at(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"whoever unpickles this fails")
    load_backbone(tiny.model_config(copy), tiny.CPU)


def test_code_of_a_repository_is_not_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\n")
    refused(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_damaged_weights(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(copy)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    """transformers fills what a file lacks with random numbers and a warning that nobody reads."""
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:4].clone()
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    refused(copy)


def test_a_tokenizer_is_needed(copy: Path) -> None:
    """Without its files, transformers builds one that turns every text into nothing."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    refused(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_a_config_that_describes_no_decoder(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    refused(copy)


def test_devices() -> None:
    assert resolve_device("cpu") == tiny.CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="--device tpu: unknown"):
        resolve_device("tpu")
    with pytest.raises(UserError, match=r"--device cud: unknown; did you mean 'cuda'\?"):
        resolve_device("cud")


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), "float32"), ((7, 5), "float32"), ((9, 0), "bfloat16")])
def test_bfloat16_that_is_emulated_is_not_taken(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 and T4 take the type and compute with it, which is what `torch.cuda.is_bf16_supported` says of them."""
    asked: list[torch.device] = []

    def found(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", found)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    second = torch.device("cuda:1")
    assert resolve_dtype("auto", second) is getattr(torch, expected)
    assert asked == [second]


def test_a_gpu_beyond_the_last_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"^--device cuda:7: no such device; the last one on this machine is cuda:1$"):
        resolve_device("cuda:7")


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:9", "cpu:x", "cuda:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name}: "):
        resolve_device(name)
