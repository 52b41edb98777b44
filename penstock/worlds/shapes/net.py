"""The tiny video-language model for training: InternVL's vision tower and projector before a lean Llama.

The text part computes attention in which far keys sit at positions of their own (worlds.net.FarView), as bounded
memories show them.  Names of parameters are those of transformers' InternVLForConditionalGeneration after `exported`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import InternVLConfig, LlamaConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from penstock.worlds.net import FarView, NetConfig, Rotations, Trunk, rotary
from penstock.worlds.shapes.outline import CODES, Outline
from penstock.worlds.shapes.tokens import BOS_ID, EOS_ID, PICTURE_ID, VOCABULARY

SIDE = 96  # pixels
TOKENS = 4  # per frame, one for each place
MEAN, STD = 0.5, 0.25  # of pixels in [0, 1]


def text_config() -> NetConfig:
    """The shape of the language part."""
    return NetConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=384, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=512, rope_theta=1_000_000.0,
    )  # fmt: skip


def hf_config() -> InternVLConfig:
    """The configuration that transformers loads."""
    text = text_config()
    inner = {k: v for k, v in text.to_hf().items() if k not in ("architectures", "model_type", "dtype", "rope_theta")}
    inner |= {"rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta}}
    inner |= {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    vision = InternVLVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=(SIDE, SIDE),
        patch_size=(12, 12), layer_scale_init_value=1.0, attention_bias=True,
    )  # fmt: skip
    return InternVLConfig(
        vision_config=vision, text_config=LlamaConfig(**inner), image_token_id=PICTURE_ID, image_seq_length=TOKENS,
        downsample_ratio=0.25, tie_word_embeddings=True, architectures=["InternVLForConditionalGeneration"],
        dtype="bfloat16",
    )  # fmt: skip


def pixels(images: Tensor) -> Tensor:
    """uint8 [n, height, width, 3] to what the tower reads, [n, 3, height, width]."""
    return ((images.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


class VisionNet(nn.Module):
    """Tower and projector: pictures [n, 3, SIDE, SIDE] to embeddings [n, TOKENS, hidden]."""

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        config.vision_config._attn_implementation = "sdpa"
        self.vision_tower = InternVLVisionModel(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)
        self.ratio = round(1 / config.downsample_ratio)

    def features(self, images: Tensor) -> Tensor:
        """What the projector reads, [n, TOKENS, ratio^2 x width], laid out as InternVL's pixel shuffle does."""
        found = self.vision_tower(pixel_values=images).last_hidden_state[:, 1:]
        n, count, width = found.shape
        side, r = round(count**0.5), self.ratio
        grid = found.view(n, side // r, r, side // r, r, width).permute(0, 1, 3, 2, 4, 5)
        return grid.reshape(n, (side // r) ** 2, r * r * width)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.multi_modal_projector(self.features(images))
        return out


class ShapesNet(nn.Module):
    """The whole model."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hf_config = hf_config()
        self.config = text_config()
        self.vision = VisionNet(self.hf_config)
        nn.init.normal_(self.vision.vision_tower.embeddings.position_embeddings, std=0.02)
        self.language_model = Trunk(self.config)
        shrink = (2 * self.config.num_hidden_layers) ** -0.5
        for name, weight in self.language_model.named_parameters():
            if weight.dim() == 2:
                std = 0.04 if "embed" in name else 0.02
                std *= shrink if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=std)
        self.outline = Outline(self.config, seed)

    def embed(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Embeddings [B, T, hidden] of tokens [B, T]; pictures take what is seen, [n, hidden]."""
        x = self.language_model.embed_tokens(tokens)
        return x.masked_scatter((tokens == PICTURE_ID)[..., None], seen)

    def forward(self, tokens: Tensor, seen: Tensor, view: FarView | None = None) -> Tensor:
        """What the output layer reads, [B, T, hidden]."""
        near = rotary(torch.arange(tokens.shape[1]), self.config)
        at = Rotations(near)
        if view is not None:
            pairs = [rotary(p if p.dim() == 1 else p[:, None], self.config) for p in (view.query_pos, view.key_pos)]
            visible, far = (m if m.dim() == 2 else m[:, None] for m in (view.visible, view.far))
            at = Rotations(near, pairs[0], pairs[1], visible, far)
        x = self.embed(tokens, seen)
        for layer in self.language_model.layers:
            x = layer(x, at)
        out: Tensor = self.language_model.norm(x)
        return out

    def logits(self, x: Tensor) -> Tensor:
        """Logits [..., V]."""
        return F.linear(x, self.language_model.embed_tokens.weight)

    def exported(self) -> dict[str, Tensor]:
        """The weights under the names of InternVLForConditionalGeneration."""
        out = {f"model.{key}": value for key, value in self.vision.state_dict().items()}
        out |= {f"model.language_model.{key}": value for key, value in self.language_model.state_dict().items()}
        return out

    def load_exported(self, tensors: dict[str, Any]) -> None:
        """The inverse of `exported`."""
        inner = {key.removeprefix("model."): value.float() for key, value in tensors.items() if key != "lm_head.weight"}
        text = {k.removeprefix("language_model."): v for k, v in inner.items() if k.startswith("language_model.")}
        self.language_model.load_state_dict(text)
        self.vision.load_state_dict({k: v for k, v in inner.items() if not k.startswith("language_model.")})


__all__ = ["CODES", "MEAN", "SIDE", "STD", "TOKENS", "ShapesNet", "VisionNet", "hf_config", "pixels", "text_config"]
