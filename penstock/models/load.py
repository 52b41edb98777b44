"""Load a model by hub name, folder or object, attach it, and know it again by its fingerprint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.errors import InputError, UnsupportedModel, UsageError
from penstock.models.attach import Attached
from penstock.models.probe import attach

TINY = Path(__file__).parent / "tiny"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Model:
    """A model ready for streams: attached, with its tokenizer (None when only token ids are used)."""

    attached: Attached
    tokenizer: Any
    name: str
    fingerprint: str

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def context(self) -> int | None:
        """Tokens the model was trained on at once, as its configuration says."""
        config: Any = self.attached.hf.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "max_position_embeddings", None)


def parse_dtype(text: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; None keeps the checkpoint's own."""
    if text is None or isinstance(text, torch.dtype):
        return text
    if text not in _DTYPES:
        raise UsageError(f"cannot run in dtype {text!r}: choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[text]


def parse_device(text: str | torch.device) -> torch.device:
    """A torch device that exists on this machine."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"cannot use the device {text!r} ({reason}): try --device cpu.") from None
    return device


def load(
    model: str | Path | nn.Module | Model | None = None,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Load and attach a causal language model.

    `model`: a hub name, a folder in hub layout, a transformers model, or None for the tiny model that is shipped.
    Raises InputError when there is nothing to load, UnsupportedModel when its attention cannot be served correctly.
    """
    if isinstance(model, Model):
        return model
    target, precision = parse_device(device), parse_dtype(dtype)
    if isinstance(model, nn.Module):
        hf = model.to(device=target, dtype=precision) if precision else model.to(target)
        name = str(getattr(hf.config, "name_or_path", "") or type(hf).__name__)
    else:
        name = str(model) if model is not None else "tiny"
        hf, tokenizer = _from_pretrained(Path(model) if model is not None else TINY, name, precision, tokenizer)
        hf = hf.to(target)
    attached = attach(hf)
    return Model(attached, tokenizer, name, fingerprint(hf))


def _from_pretrained(path: Path, name: str, dtype: torch.dtype | None, tokenizer: Any) -> tuple[Any, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if path.exists():
        _check_folder(path)
    elif str(path).startswith((".", "/", "~")) or len(path.parts) > 2:
        raise InputError(f"there is no model folder {name}: give a folder with config.json, or a name on the hub.")
    source = str(path)
    try:
        hf = _class_for(source).from_pretrained(source, dtype=dtype or "auto")
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, json.JSONDecodeError) as error:
        raise _explained(name, error) from None
    except Exception as error:  # safetensors raises its own type, without a common base
        raise InputError(f"the weights of {name} cannot be read ({_first_line(error)}): download them again.") from None
    if tokenizer is None:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except Exception as error:
            raise InputError(f"{name} has no usable tokenizer ({_first_line(error)}): add tokenizer.json.") from None
    return hf, tokenizer


def _class_for(source: str) -> Any:
    """The automatic class that loads a model: of those that see, where it is one and no plain language model."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    kind = transformers.AutoConfig.from_pretrained(source).model_type
    if kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path} is a file: give the folder that holds config.json and the weights.")
    if not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json: give a model folder in hub layout.")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path / 'config.json'} is not valid JSON: download it again.") from None
    if not any(path.glob("*.safetensors")):
        if any(path.glob("*.bin")):
            raise InputError(f"{path} has only pickled weights, which can run code: convert them to safetensors.")
        raise InputError(f"{path} has no weights: add model.safetensors (or its shards and index).")
    if config.get("auto_map"):
        raise UnsupportedModel(
            f"{path} brings its own modelling code, which is not run: use a model known to transformers."
        )


def _explained(name: str, error: Exception) -> Exception:
    text = _first_line(error)
    if "Unrecognized configuration class" in text or "does not recognize this architecture" in str(error):
        return UnsupportedModel(f"{name} is not a causal language model that transformers knows: choose another model.")
    if isinstance(error, OSError) and ("connect" in str(error).lower() or "not a local folder" in str(error)):
        return InputError(f"{name} is neither a folder here nor reachable on the hub: check the name or the network.")
    return InputError(f"{name} cannot be loaded ({text}): check the folder or name.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".:")


@torch.no_grad()
def fingerprint(hf: nn.Module) -> str:
    """A short identity of weights and configuration: equal for equal models, whatever their folder is called."""
    digest = hashlib.sha256()
    config: Any = hf.config
    digest.update(str(config.model_type).encode())
    for name, tensor in sorted(hf.state_dict().items()):
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:65].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
