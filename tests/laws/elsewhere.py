"""Another process that continues a saved row: for the law that a snapshot needs nothing but its bytes.

One process serves the whole test run.  A request is a line of JSON with the case, the file of the saved row, its
length, the tokens to come and their step size; the answer is the file of their logits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TESTS = Path(__file__).parents[1]


class Elsewhere:
    """The other process, seen from this one."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "laws.elsewhere"], env={**os.environ, "PYTHONPATH": paths}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def continues(self, case: str, saved: Path, length: int, tokens: Tensor, chunk: int | None) -> Tensor:
        """Load a row there, feed it there: logits [N, V]."""
        request = {"case": case, "saved": str(saved), "length": length, "tokens": tokens.tolist(), "chunk": chunk}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the other process died"
        return load_file(answer.strip())["logits"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@cache
def elsewhere() -> Elsewhere:
    """The other process, started at the first use."""
    return Elsewhere()


def _answer(request: dict[str, Any]) -> str:
    from laws.cases import case_of

    case, saved = case_of(request["case"]), Path(request["saved"])
    memory = case.memory()
    memory.load_row(load_file(saved), request["length"])
    logits = case.feed(memory, torch.tensor(request["tokens"]), request["chunk"])
    out = saved.with_suffix(".logits")
    save_file({"logits": logits.contiguous()}, out)
    return str(out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(_answer(json.loads(line)), flush=True)
