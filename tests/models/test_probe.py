"""Probing: a model is attached rightly or refused with one sentence, and a refused one is left as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from penstock.errors import UnsupportedModel
from penstock.memory import Rotary, Step
from penstock.models import probe
from penstock.models.probe import attach, compare_with_native
from penstock.testing import randomise, tiny_model

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
}
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bloom": ("bloom", "AutoModelForCausalLM", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
              "attention code of its own"),
    "bert": ("bert", "AutoModelForMaskedLM", SMALL, "reads later tokens too"),
    "bert-encoder": ("bert", "AutoModel", SMALL, "reads later tokens too"),
    "t5": ("t5", "AutoModelForSeq2SeqLM",
           {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
           "encoder-decoder"),
    "bart": ("bart", "AutoModelForSeq2SeqLM",
             {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 128, "encoder_ffn_dim": 64,
              "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
             "encoder-decoder"),
    "mamba": ("mamba", "AutoModelForCausalLM",
              {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8}, "recurrent state"),
    "rwkv": ("rwkv", "AutoModelForCausalLM",
             {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 128},
             "recurrent state"),
    "qwen3_next": ("qwen3_next", "AutoModelForCausalLM", {**GROUPED, **MOE, **LINEAR, "head_dim": 16},
                   "layers of the kind linear_attention"),
    "llama4": ("llama4_text", "AutoModelForCausalLM",
               {**GROUPED, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 96}, "chunked attention"),
    "ministral3": ("ministral3", "AutoModelForCausalLM", {**GROUPED, "head_dim": 16}, "more than the angle"),
    "hunyuan": ("hunyuan_v1_dense", "AutoModelForCausalLM", {**GROUPED, "head_dim": 16}, "cannot explain"),
    "stablelm": ("stablelm", "AutoModelForCausalLM", GROUPED, "does not hand keyword arguments on"),
    "vit": ("vit", "AutoModel", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                 "intermediate_size": 32}, "no vocabulary"),
}  # fmt: skip


def build(kind: str, auto: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(AutoConfig.for_model(kind, **settings))
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_are_refused_and_left_alone(name: str) -> None:
    kind, auto, settings, reason = REFUSED[name]
    hf = build(kind, auto, settings)
    used = hf.config._attn_implementation
    with pytest.raises(UnsupportedModel, match=re.escape(reason)) as caught:
        attach(hf)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert type(hf).__name__ in str(caught.value)
    assert hf.config._attn_implementation == used
    assert not [n for n in hf.__dict__ if "penstock" in n]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="not a transformers model"):
        attach(nn.Linear(2, 2))


def test_a_model_that_breaks_under_the_probe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hf: Any = tiny_model("llama")

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("no such thing\nwith details")

    monkeypatch.setattr(hf.model.layers[1].mlp, "forward", broken)
    with pytest.raises(UnsupportedModel, match=r"could not be probed.*KeyError"):
        attach(hf)
    assert hf.config._attn_implementation != "penstock"


# -- the self-check -----------------------------------------------------------------------------------------------


def _wrong_angles(patch: pytest.MonkeyPatch) -> None:
    right = Rotary.angles
    patch.setattr(Rotary, "angles", lambda self, p, device="cpu": right(self, p * (1 if len(p) == 8 else 2), device))


def _without(name: str, value: Any) -> Any:
    def spoil(patch: pytest.MonkeyPatch) -> None:
        right = Step.attend

        def wrong(self: Step, *args: Any, **kwargs: Any) -> Tensor:
            return right(self, *args, **{**kwargs, name: value})

        patch.setattr(Step, "attend", wrong)

    return spoil


def _window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = probe.window_of

    def wrong(*args: Any) -> int | None:
        window = right(*args)
        return window and window + 1

    patch.setattr(probe, "window_of", wrong)


@pytest.mark.parametrize(
    ("family", "spoil"),
    [
        ("llama", _wrong_angles),
        ("gpt_neox", _wrong_angles),
        ("falcon", _wrong_angles),
        ("granite", _without("scale", 0.25)),
        ("gemma2", _without("softcap", None)),
        ("gpt_oss", _without("sink_logit", None)),
        ("mistral", _window_off_by_one),
        ("gpt_oss", _window_off_by_one),
    ],
)
def test_the_self_check_refuses_what_is_wrong(family: str, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is a mistake that the probe itself could make; the comparison with the model catches it."""
    attach(tiny_model(family))  # right as it is
    spoil(monkeypatch)
    with pytest.raises(UnsupportedModel, match="gives other logits through penstock than by itself"):
        attach(tiny_model(family))


def test_the_self_check_has_room() -> None:
    """Rounding stays a hundred times below the limit in float32, five times in bfloat16."""
    for family in ("llama", "gemma3", "mpt"):
        difference, tolerance = compare_with_native(attach(tiny_model(family)))
        assert difference < tolerance / 100
    for family in ("llama", "gpt_neox"):
        difference, tolerance = compare_with_native(attach(tiny_model(family).to(torch.bfloat16)))
        assert difference < tolerance / 5


def test_the_second_attachment_is_not_probed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny_model("llama")
    first = attach(hf)
    with monkeypatch.context() as patch:
        patch.setattr(probe, "compare_with_native", lambda attached: 1 / 0)
        assert attach(hf).geometry is first.geometry
        patch.undo()
    hf.to(torch.bfloat16)
    assert attach(hf).geometry.dtype == torch.bfloat16, "another dtype is another geometry"
