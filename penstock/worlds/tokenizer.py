"""The tokenizer of the shipped model: byte-level BPE, trained here on the library text and on the facts world.

Any bytes that are text round-trip; every digit is a token of its own; `<|bos|>` is put once at the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from penstock.worlds.facts import FactsWorld
from penstock.worlds.library import training_text
from penstock.worlds.words import ADJECTIVES, ANSWERS, NOUNS

BOS = "<|bos|>"
EOS = "<|eos|>"
BOS_ID = 0
EOS_ID = 1
VOCABULARY = 4096

# Words with their leading space, single digits, runs of signs, white space; splits never depend on what follows a line.
_SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _corpus(facts: int, words: int) -> Iterator[str]:
    yield from training_text()
    for passage in islice(FactsWorld(seed=1_000_003), facts):
        yield passage.text + (passage.fact.question + passage.fact.answer + "." if passage.fact else "")
    for word in (*ANSWERS, *ADJECTIVES, *NOUNS):  # often enough that each becomes one token
        yield f" {word}\n" * words


def train_tokenizer(vocabulary: int = VOCABULARY, facts: int = 20_000, words: int = 3_000) -> Tokenizer:
    """A new tokenizer of `vocabulary` tokens, byte alphabet and the two special tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(facts, words), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of text in the middle of a stream (without BOS)."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
