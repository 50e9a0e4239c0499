"""What is exported gives the same vectors and scores in PEFT, transformers and sentence-transformers as here."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import tiny
from unimoer.config import RouterConfig
from unimoer.errors import UserError
from unimoer.model.experts import grow_expert
from unimoer.model.export import export_model
from unimoer.model.heads import pool
from unimoer.model.merging import merge, placed, updates
from unimoer.model.unified import UnifiedModel
from unimoer.types import Task

TOLERANCE = 1e-5
"""Relative, in float32: the order of sums differs in every layer, and a merged weight is rounded once more."""
Bases = Callable[[str], Path]

TASKS: dict[str, Any] = {"embedding": (4, 0, 3), "reranking": (2, 5, 3)}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, three projections": {"targets": ["v_proj", "up_proj", "down_proj"]},
    # Task experts missing from a layer, the shared one from another.
    "hard switch": {"experts": TASKS, "router": {"type": "hard"}},
    "hard shared": {"experts": {**TASKS, "shared": (0, 2, 1)}, "router": {"type": "hard_shared"}},
    "hard shared, a layer without": {"experts": {**TASKS, "shared": (1, 0, 0)}, "router": {"type": "hard_shared"}},
    "hard shared, by projection": {
        "experts": {"embedding": 3, "reranking": 1, "shared": 2},
        "router": {"type": "hard_shared", "scope": "projection"},
    },
    "uniform": {"experts": {"one": (2, 3, 0), "two": 1, "three": (0, 2, 0)}, "router": {"type": "uniform"}},
    "uniform, own gain": {"experts": {"one": 3, "two": (1, 0, 2)}, "router": {"type": "uniform"}, "gain": 1.7},
    "uniform, rank by rank": {"experts": {"one": 3}, "rank_wise": True, "router": {"type": "uniform"}, "gain": 2.5},
}
QUERIES = ["where is the red kettle", "who owns the pond"]
DOCUMENTS = ["The red kettle stands in the corner.", "A green pond, very old, of the garden."]


def build(base: Path, arm: str = "plain", **changes: Any) -> UnifiedModel:
    """Alpha 6 over rank 4: a scale of 1.5 that no rank of any expert gives by accident."""
    return tiny.build(base, noise=0.1, adapter={"rank": 4, "alpha": 6.0, **ARMS[arm]}, **changes)


def token_batch(model: UnifiedModel, task: Task) -> Any:
    prompter = model.prompter
    if task is Task.EMBEDDING:
        return tiny.batch([*prompter.queries(QUERIES), *prompter.documents(DOCUMENTS)])
    return tiny.batch(prompter.pairs(QUERIES, DOCUMENTS))


@torch.inference_mode()
def ours(model: UnifiedModel, task: Task) -> Tensor:
    return (model.embed if task is Task.EMBEDDING else model.score)(token_batch(model, task))


@torch.inference_mode()
def theirs(body: Any, folder: Path, model: UnifiedModel, task: Task) -> Tensor:
    """A transformers body in place of our decoder; pooling and the exported head as the README has them."""
    batch = token_batch(model, task)
    hidden = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    state = pool(hidden, batch.attention_mask, json.loads((folder / "export.json").read_text())["pooling"])
    if task is Task.EMBEDDING:
        return torch.nn.functional.normalize(state, dim=-1)
    head = load_file(folder / "score_head.safetensors")
    return state @ head["projection.weight"][0] + head["projection.bias"]


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables that the README's code leaves behind."""
    monkeypatch.chdir(folder)
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    return scope


def check_readme(model: UnifiedModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own query and documents give our vectors or scores."""
    scope = run_readme(folder, monkeypatch)
    prompter, query = model.prompter, "how are planets formed"
    documents = ["Planets grow from the disc of gas and dust around a young star.", "Bread needs flour."]
    with torch.inference_mode():
        if folder.name == "embedding":
            found = torch.cat([torch.as_tensor(scope[name]) for name in ("queries", "documents")])
            wanted = model.embed(tiny.batch([*prompter.queries([query]), *prompter.documents(documents)]))
        else:
            found, wanted = scope["scores"], model.score(tiny.batch(prompter.pairs([query] * 2, documents)))
    assert tiny.relative(found, wanted) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("arm", ARMS)
def test_peft_gives_the_same_vectors_and_scores(family: str, arm: str, bases: Bases, tmp_path: Path) -> None:
    model = build(bases(family), arm)
    for task, folder in zip(Task, export_model(model, tmp_path / "out"), strict=True):
        plain = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32)
        with warnings.catch_warnings():
            # PEFT only warns of missing keys.
            warnings.filterwarnings("error", message=".*adapter keys")
            twin = PeftModel.from_pretrained(plain, folder).eval()
        layers = {name: module for name, module in plain.base_model.named_modules() if isinstance(module, LoraLayer)}
        found = updates(model, task)
        assert layers.keys() == found.keys()
        for name, layer in layers.items():
            assert (layer.r["default"], layer.scaling["default"]) == (found[name].rank, found[name].scale), name
        bare = ours(build(bases(family), arm, seed=0), task)
        assert (
            tiny.relative(theirs(twin.get_base_model().base_model, folder, model, task), ours(model, task)) < TOLERANCE
        )
        assert bare.shape == ours(model, task).shape


def test_the_scale_of_fixed_experts_is_exactly_ours(base: Path) -> None:
    for arm in ("plain", "hard switch", "hard shared", "uniform"):
        model = build(base, arm)
        assert {update.scale for task in Task for update in updates(model, task).values()} == {1.5}, arm
    # Where one expert is alone it is not weighed at all.
    found = updates(build(base, "uniform, own gain"), Task.EMBEDDING)
    scales = {int(path.split(".")[1]): update.scale for path, update in found.items()}
    assert scales == {0: pytest.approx(1.5 * 1.7 / 2), 1: 1.5, 2: pytest.approx(1.5 * 1.7 / 2)}


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("arm", ["plain", "hard switch", "hard shared, a layer without", "uniform, own gain"])
def test_merged_models_give_the_same(family: str, arm: str, bases: Bases, tmp_path: Path) -> None:
    model = build(bases(family), arm)
    for task, folder in zip(Task, export_model(model, tmp_path / "out", form="merged"), strict=True):
        for kind in (AutoModel, AutoModelForCausalLM):
            merged = kind.from_pretrained(folder).eval()
            assert merged.dtype == torch.float32
            assert tiny.relative(theirs(merged.base_model, folder, model, task), ours(model, task)) < TOLERANCE


@pytest.mark.parametrize("family", tiny.HOSTED)
def test_hosted_decoders_are_exported_too(family: str, bases: Bases, tmp_path: Path) -> None:
    model = build(bases(family), prompts=tiny.PROMPTS | {"append_eos": False})
    adapters, merged = (export_model(model, tmp_path / form, form=form) for form in ("peft", "merged"))
    for task, adapter, whole in zip(Task, adapters, merged, strict=True):
        twin = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases(family)), adapter).eval()
        plain = AutoModelForCausalLM.from_pretrained(whole).eval()
        for body, folder in ((twin.get_base_model().base_model, adapter), (plain.base_model, whole)):
            assert tiny.relative(theirs(body, folder, model, task), ours(model, task)) < TOLERANCE


def test_merged_weights_are_rounded_once(base: Path, tmp_path: Path) -> None:
    model = build(base, "hard shared", dtype="bfloat16")
    found = updates(model, Task.RERANKING)
    [_, folder] = export_model(model, tmp_path / "out", form="merged")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    for name, weight in plain.named_parameters():
        new = merged.get_parameter(name)
        assert new.dtype == torch.bfloat16
        path = name.removeprefix("model.").removesuffix(".weight")
        if path not in found:
            assert torch.equal(new, weight)
            continue
        update = found[path]
        exact = weight.double() + update.scale * (update.b.double() @ update.a.double())
        # Half a unit of bfloat16's 8 digits, and what float32 leaves open.
        assert ((new.double() - exact).abs() <= exact.abs() * (2**-8 + 1e-5) + 1e-6).all(), name


def test_a_merge_is_the_difference_that_the_adapter_makes(base: Path) -> None:
    model = build(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = plain.model.layers[1].mlp.up_proj.weight.clone()
    merge(plain, updates(model, Task.EMBEDDING))
    [module] = [
        module for parent, module, _ in placed(model) if parent == "layers.1.mlp" and "up_proj" in module.targets
    ]
    a, b, scale = module.lora("up_proj", "shared")
    assert tiny.relative(plain.model.layers[1].mlp.up_proj.weight - before, scale * (b @ a)) < TOLERANCE


def test_ranks_that_are_not_active_are_left_out(base: Path, tmp_path: Path) -> None:
    model = build(base)
    grow_expert(model, "shared", 3)
    [folder, _] = export_model(model, tmp_path / "out")
    twin = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3
    found = theirs(twin.get_base_model().base_model, folder, model, Task.EMBEDDING)
    assert tiny.relative(found, ours(model, Task.EMBEDDING)) < TOLERANCE


SETTINGS: dict[str, dict[str, Any]] = {
    "mean, linear": {"prompts": {"max_query_tokens": 12, "max_document_tokens": 20, "append_eos": False}},
    "last, yes/no, two layers": {
        "layers": 2,
        "embedding": {"pooling": "last"},
        "reranking": {"pooling": "last", "head": "yes_no"},
        "prompts": {"instruction": "Find the {query}", "document": "passage: {document}"},
    },
    "bidirectional, interaction": {
        "reranking": {"pooling": "mean", "attention": "bidirectional", "head": "interaction"},
        "prompts": {"pair": "<|im_start|>{query}<|im_end|>{document}"},
    },
    "bidirectional, mlp": {
        "embedding": {"pooling": "mean", "attention": "bidirectional"},
        "reranking": {"pooling": "last", "attention": "bidirectional", "head": "mlp"},
        "prompts": tiny.PROMPTS,
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_readme_runs_and_gives_the_same(
    settings: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(base, **SETTINGS[settings])
    for folder in export_model(model, tmp_path / "peft"):
        check_readme(model, folder, monkeypatch)
    [_, reranking] = export_model(model, tmp_path / "merged", form="merged")
    check_readme(model, reranking, monkeypatch)
    learned = model.config.reranking.head != "yes_no"
    assert (reranking / "score_head.safetensors").exists() == learned


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_sentence_transformers_embeds_the_same(
    append_eos: bool, pooling: str, attention: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    model = build(
        base,
        "hard shared",
        embedding={"pooling": pooling, "attention": attention},
        prompts={"append_eos": append_eos, "max_document_tokens": 90},
    )
    [folder] = export_model(model, tmp_path / "out", form="merged", tasks=[Task.EMBEDDING])
    peer = SentenceTransformer(str(folder), device="cpu")
    texts = [*DOCUMENTS, " two  spaces", "a plate " * 200]
    with torch.inference_mode():
        for prepare, name in ((model.prompter.documents, None), (model.prompter.queries, "query")):
            wanted = model.embed(tiny.batch(prepare(texts[:3])))
            found = torch.from_numpy(peer.encode(texts[:3], prompt_name=name))
            assert tiny.relative(found, wanted) < TOLERANCE
    assert peer.encode_document(texts).shape == (4, 32)
    check_readme(model, folder, monkeypatch)


def test_sentence_transformers_cuts_documents_where_we_do(base: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = build(base, embedding={"pooling": "last"}, prompts=tiny.PROMPTS)
    [folder, _] = export_model(model, tmp_path / "out", form="merged")
    peer = SentenceTransformer(str(folder), device="cpu")
    texts = ["a plate " * 200, *DOCUMENTS]
    with torch.inference_mode():
        wanted = model.embed(tiny.batch(model.prompter.documents(texts)))
    assert tiny.relative(torch.from_numpy(peer.encode(texts)), wanted) < TOLERANCE


@pytest.fixture
def dressed(base: Path, tmp_path: Path) -> Path:
    """A base whose tokenizer begins every text with a token, and has a chat template."""
    folder = shutil.copytree(base, tmp_path / "dressed")
    words = AutoTokenizer.from_pretrained(folder)
    words.bos_token, words.chat_template = "<|im_start|>", "{{ messages }}"
    words.add_bos_token = True
    words.save_pretrained(folder)
    return folder


def test_tokens_at_both_ends_of_a_text(dressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(dressed, embedding={"pooling": "last"}, prompts={"append_eos": True})
    assert model.prompter.documents(["x"])[0][::2] == [1, 0]
    for folder in export_model(model, tmp_path / "peft"):
        check_readme(model, folder, monkeypatch)
    for folder in export_model(model, tmp_path / "merged", form="merged"):
        check_readme(model, folder, monkeypatch)


def test_a_chat_template_is_left_out_where_it_would_be_applied(dressed: Path, tmp_path: Path) -> None:
    """sentence-transformers 6 makes a chat message of every text if the tokenizer has a template."""
    embedding, reranking = export_model(build(dressed), tmp_path / "out", form="merged")
    assert AutoTokenizer.from_pretrained(embedding).chat_template is None
    assert AutoTokenizer.from_pretrained(reranking).chat_template == "{{ messages }}"


def refused(model: UnifiedModel, output: Path, **options: Any) -> str:
    """The one line that says why, after which nothing is there that was not before."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as caught:
        export_model(model, output, **options)
    assert sorted(output.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


ROUTED: dict[str, dict[str, Any]] = {
    kind: {"experts": {"embedding": 2, "reranking": 2, "shared": 2}, "router": {"type": kind}}
    for kind in ("sparsegen", "softmax", "topk", "tsallis", "hierarchical", "similarity", "random_frozen")
}
ROUTED["rank by rank"] = {"experts": {"shared": 4}, "rank_wise": True, "router": {"type": "topk"}}


def test_every_router_is_either_exported_or_refused() -> None:
    kinds = {kind.model_fields["type"].default for kind in get_args(get_args(RouterConfig)[0])}
    assert kinds == {arm["router"]["type"] for arm in (*ARMS.values(), *ROUTED.values()) if "router" in arm}


@pytest.mark.parametrize("arm", ROUTED)
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_weights_that_depend_on_the_text_are_refused(arm: str, form: Any, base: Path, tmp_path: Path) -> None:
    model = tiny.build(base, adapter={"rank": 4, "alpha": 6.0, **ROUTED[arm]})
    message = refused(model, tmp_path / "out", form=form)
    assert message.startswith(f"router '{ROUTED[arm]['router']['type']}' weighs the experts anew for every text")


def test_nothing_is_overwritten(base: Path, tmp_path: Path) -> None:
    assert "exists already" in refused(build(base), tmp_path)


def test_text_behind_a_text_is_refused_for_sentence_transformers(base: Path, tmp_path: Path) -> None:
    model = build(base, prompts=tiny.PROMPTS | {"document": "{document} (end)"})
    message = refused(model, tmp_path / "out", form="merged")
    assert message.startswith("model.prompts.document: ends in text after {document}")
    assert [folder.name for folder in export_model(model, tmp_path / "out")] == ["embedding", "reranking"]


def test_a_task_without_experts_is_refused_for_peft(base: Path, tmp_path: Path) -> None:
    adapter = {"rank": 4, "alpha": 6.0, "experts": {"embedding": 0, "reranking": 4}, "router": {"type": "hard"}}
    model = tiny.build(base, noise=0.1, adapter=adapter)
    assert refused(model, tmp_path / "out").startswith("embedding: its experts have rank 0 in every layer")
    [folder] = export_model(model, tmp_path / "out", tasks=[Task.RERANKING])
    assert folder.name == "reranking"


def test_a_merged_tokenizer_ends_texts_by_the_token_that_was_named(base: Path, tmp_path: Path) -> None:
    """Which need not be the one that the base's tokenizer names."""
    prompts = {**tiny.PROMPTS, "eos_token": "<|im_end|>"}
    model = tiny.build(base, noise=0.1, prompts=prompts)
    export_model(model, tmp_path / "out", form="merged", tasks=[Task.EMBEDDING])
    ids = AutoTokenizer.from_pretrained(tmp_path / "out" / "embedding")("pond").input_ids
    assert ids == model.prompter.documents(["pond"])[0]
    assert ids[-1] == model.tokenizer.convert_tokens_to_ids("<|im_end|>")
