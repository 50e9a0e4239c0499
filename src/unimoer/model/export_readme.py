"""The README of an exported folder: what it is, its prompts, and code that embeds or scores with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from unimoer.config.heads import HEADS as KINDS
from unimoer.config.heads import HeadName
from unimoer.model.head_table import HEADS
from unimoer.model.score_head import Recipe

LOAD_PEFT = """\
import json
import re

import torch
from peft import PeftModel
<import>from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
about = json.load(open(f"{folder}/export.json"))
base, prompts = about["base"], about["prompts"]
config = AutoConfig.from_pretrained(base["location"], revision=base["revision"])
<cut>plain = AutoModelForCausalLM.from_pretrained(
    base["location"], revision=base["revision"], config=config, dtype=torch.<dtype>
)
model = PeftModel.from_pretrained(plain, folder).eval()
body = plain.base_model
tokenizer = AutoTokenizer.from_pretrained(base["location"], revision=base["revision"])
"""

LOAD_MERGED = """\
import json
import re

import torch
<import>from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
about = json.load(open(f"{folder}/export.json"))
prompts = about["prompts"]
plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.<dtype>).eval()
body = plain.base_model
tokenizer = AutoTokenizer.from_pretrained(folder)
"""

STATES = """\
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def cut(text, budget):
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return text if len(ends) <= budget else text[: ends[budget - 1][1]]


def fill(template, **texts):
    fields = {"instruction": prompts["instruction"]}
    fields |= {name: cut(text, prompts[f"max_{name}_tokens"]) for name, text in texts.items()}
    return re.sub(r"\\{(\\w+)\\}", lambda found: fields.get(found[1], found[0]), template)


@torch.inference_mode()
def states(filled):
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in filled]
    ids = [about["first_ids"] + own + about["last_ids"] for own in ids]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    hidden, mask = body(**batch).last_hidden_state.float(), batch.attention_mask
    <pool>
"""

POOL = {
    "mean": "return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    "last": "return hidden[torch.arange(len(ids)), mask.sum(1) - 1]",
}

EMBED = """\


def embed(texts, kind):
    filled = [fill(prompts[kind], **{kind: text}) for text in texts]
    return torch.nn.functional.normalize(states(filled), dim=-1)


queries = embed(["how are planets formed"], "query")
documents = embed(["Planets grow from the disc of gas and dust around a young star.", "Bread needs flour."], "document")
print(queries @ documents.T)
"""

SCORE = """\


<head>

def score(query, documents):
    state = states([fill(prompts["pair"], query=query, document=document) for document in documents])
    return <logit>


documents = ["Planets grow from the disc of gas and dust around a young star.", "Bread needs flour."]
scores = score("how are planets formed", documents)
print(scores)  # their order counts; the sigmoid is a probability only after training with `bce`
"""

HEAD_FILE = """\
head = load_file(f"{folder}/score_head.safetensors")
"""

SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder
queries = model.encode(["how are planets formed"], prompt_name="query")
documents = model.encode(["Planets grow from the disc of gas and dust around a young star.", "Bread needs flour."])
print(queries @ documents.T)
"""


def readme(about: Mapping[str, Any], form: Literal["peft", "merged"]) -> str:
    """Markdown for a folder whose `export.json` holds `about`; its one Python block runs in that folder."""
    base, head = about["base"], about.get("head", {}).get("type")
    depth = f"its first {base['layers']} layers" if base["layers"] else "all its layers"
    what = "LoRA for PEFT on" if form == "peft" else "LoRA merged into the weights of"
    parts = [
        f"# {about['task']}, exported by unimoer {about['unimoer']}",
        f"{what} `{base['name']}` ({depth}), {about['pooling']} pooling, {about['attention']} attention.",
    ]
    if head is not None:
        parts.append(_recipe(head).words)
    if form == "peft":
        cut = f" with {depth}" if base["layers"] else ""
        parts.append(f"PEFT takes it on `AutoModelForCausalLM`{cut}, not on `AutoModel`.")
    elif head is None:
        parts.append(
            "sentence-transformers cuts texts to the `max_seq_length` of `sentence_bert_config.json`, prompt included."
        )
    if about["attention"] == "bidirectional":
        parts.append("`config.is_causal = False` needs transformers 5, and attention `sdpa` or `eager`.")
    prompts = sorted(about["prompts"].items())
    parts += [
        f"```python\n{_code(about, form)}```",
        "Prompts, from `export.json`; a query or document is cut to its own number of tokens before it is put in:",
        "\n".join(f"- `{name}`: `{json.dumps(value, ensure_ascii=False)}`" for name, value in prompts),
        "unimoer also removes control tokens from texts, so that no document can end the prompt it stands in.",
    ]
    return "\n\n".join(parts) + "\n"


def _recipe(head: HeadName) -> Recipe:
    found = HEADS[head].recipe
    assert found is not None, "checked before anything is exported"
    return found


def _code(about: Mapping[str, Any], form: Literal["peft", "merged"]) -> str:
    if form == "merged" and about["task"] == "embedding":
        return SENTENCE_TRANSFORMERS
    layers, bidirectional = about["base"]["layers"], about["attention"] == "bidirectional"
    fields = {
        "<import>": "",
        "<cut>": (f"config.num_hidden_layers = {layers}\n" if layers else "")
        + ("config.is_causal = False\n" if bidirectional else ""),
        "<dtype>": about["base"]["dtype"],
        "<pool>": POOL[about["pooling"]],
    }
    code = (LOAD_PEFT if form == "peft" else LOAD_MERGED) + STATES
    if about["task"] == "embedding":
        code += EMBED
    else:
        code += SCORE
        recipe = _recipe(about["head"]["type"])
        fields["<head>"], fields["<logit>"] = recipe.setup, recipe.score
        fields["<pool>"] = recipe.pool or fields["<pool>"]
        if KINDS[about["head"]["type"]].learned:
            fields["<head>"] = HEAD_FILE + recipe.setup
            fields["<import>"] = "from safetensors.torch import load_file\n"
    for name, text in fields.items():
        code = code.replace(name, text)
    return code
