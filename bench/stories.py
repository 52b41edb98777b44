"""What text does a story model know best? Its own stories, sampled once and kept in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

ROUNDS, ROWS, LONGEST, SEED = 4, 256, 400, 0


def sampled_stories(model: Path, folder: Path) -> list[int]:
    """About a thousand stories, joined, at temperature 1, each from its start token to its end token."""
    kept = folder / f"{model.name}-stories.npy"
    if kept.exists():
        found: list[int] = np.load(kept).tolist()
        return found
    print("sampling stories ...", file=sys.stderr)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.manual_seed(SEED)
    end = int(network.config.eos_token_id)
    start = torch.full((ROWS, 1), network.config.bos_token_id)
    ids: list[int] = []
    for _ in range(ROUNDS):
        with torch.inference_mode():
            rows = network.generate(
                start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=LONGEST,
                pad_token_id=end,
            )  # fmt: skip
        for row in rows.tolist():
            ids += row[: row.index(end) + 1] if end in row else row
    folder.mkdir(parents=True, exist_ok=True)
    np.save(kept, np.array(ids, dtype=np.int32))
    return ids
