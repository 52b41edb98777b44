"""What is lost when the server is killed in the middle of everything?

    python -m bench.serve_crash --sessions 100 --seed 0

Every session has a writer that appends text and asks questions in turn and remembers what was acknowledged.  When each
has at least `--rounds` acknowledgements the server is killed with SIGKILL.  The next server on the same folder must

    lost      hold every acknowledged byte and token, told at once, before any replay ends
    exact     answer one more question as a session alone that was told the same: the same text at the same length
              (what was under way and not acknowledged may be there, as a whole, or not); its earlier answers, too, are
              those of a session alone

The shipped model, budget 256, in float32: in bfloat16 a token may hang on the company that a session has in a batch, so
that a session alone is no measure.  Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from bench.machine import record
from bench.report import say
from bench.robust.crash import crash
from penstock.models.load import load


def main() -> None:
    """Crash, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="acknowledgements of each session before the kill")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(1)
    model = load(None, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        result = crash(model, Path(folder), ("--dtype", "float32"), a.sessions, a.rounds, a.seed, budget=256)
    say(f"acknowledged input lost: {result['lost_bytes']} bytes, {result['lost_tokens']} tokens")
    say(f"sessions resumed token-exact: {result['exact']} of {result['sessions']}")
    print(json.dumps({**result, "machine": record()}))


if __name__ == "__main__":
    main()
