"""Read and write by a policy: what a model writes while its source still comes, word by word.

    python examples/interpret.py                                   the shipped model goes on with library text
    python examples/interpret.py --policy la-2 --model Qwen/Qwen3-0.6B --prompt "In German: " --file talk.txt

The shipped model does not translate: with it the table shows when words are written, not how well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import penstock
from penstock.errors import PenstockError
from penstock.live import Interpreter
from penstock.models.load import load
from penstock.triggers.policies import lagging, parse_policy
from penstock.worlds.library import heldout_text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="a hub name or a folder; the shipped one if not given")
    parser.add_argument("--memory", default="group-positions", help="a memory; group-positions keeps both sides apart")
    parser.add_argument("--budget", default="512", help="entries")
    parser.add_argument("--policy", default="wait-3", help="wait-K, la-N (local agreement) or hold-N")
    parser.add_argument("--prompt", default="", help="read before the source")
    parser.add_argument("--file", type=Path, help="the source; library text if not given")
    parser.add_argument("--words", type=int, default=24, help="words of the source")
    options = parser.parse_args(arguments)
    try:
        source = options.file.read_text() if options.file else "".join(heldout_text())
        words = source.split(maxsplit=options.words)[: options.words]
        session = penstock.open(load(options.model), options.memory, options.budget)
        session.feed(options.prompt)
        interpreter = Interpreter(session, parse_policy(options.policy), max_new=32)
        for word in words:
            print(f"{word:<24} {interpreter.read(f' {word} ').strip()}")
        print(f"{'':<24} {interpreter.end().strip()}")
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return error.exit_code
    behind = lagging(interpreter.delays, len(words))
    print(f"\n{len(words)} words read, {len(interpreter.delays)} written, {behind:.1f} words behind on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
