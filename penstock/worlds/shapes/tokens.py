"""The tokenizer of the tiny video-language model: byte-level BPE over the questions of the shapes world.

Any text round-trips; the words of the world are one token each.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from penstock.worlds.shapes.wording import corpus

BOS, EOS, PICTURE, FRAME, OPEN = "<|bos|>", "<|eos|>", "<|picture|>", "<|frame|>", "<|open|>"
BOS_ID, EOS_ID, PICTURE_ID, FRAME_ID, OPEN_ID = range(5)
VOCABULARY = 512

# Words with their leading space, single digits, runs of signs, white space; splits never depend on what follows a line.
_SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer() -> Tokenizer:
    """A new tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, EOS, PICTURE, FRAME, OPEN], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(0, 400), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS,
        "context_image_token": PICTURE, "start_image_token": OPEN, "end_image_token": FRAME, "video_token": PICTURE,
        "clean_up_tokenization_spaces": False, "model_max_length": 1_000_000_000_000,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of text in the middle of a stream (without BOS)."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
