"""What text does a story model know best? Its own stories, sampled once and kept in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROUNDS, ROWS, LONGEST, SEED = 4, 256, 400, 0


def sampled_stories(model: Path, folder: Path) -> str:
    """About a thousand stories, at temperature 1, each from the start token to the end of the story."""
    kept = folder / f"{model.name}-stories.txt"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    print("sampling stories ...", file=sys.stderr)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(SEED)
    start = torch.full((ROWS, 1), network.config.bos_token_id)
    stories: list[str] = []
    for _ in range(ROUNDS):
        with torch.inference_mode():
            rows = network.generate(
                start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=LONGEST,
                pad_token_id=network.config.eos_token_id,
            )  # fmt: skip
        stories += [tokenizer.decode(row.tolist(), skip_special_tokens=True).strip() for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text("\n\n".join(stories) + "\n", encoding="utf-8")
    return kept.read_text(encoding="utf-8")
