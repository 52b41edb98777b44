"""How a reply is scored: each rule in the published form (`compat`) and in a strict one.

The published forms err in known ways: the first character of "The answer is B" is T; "A dog" names option A; "NOT"
holds "NO".  The strict rules take an answer only where it stands by itself.  Figures of papers are compared with
`compat`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_STANDING = re.compile(r"(?<![A-Za-z0-9'])\(?([A-H])(?![A-Za-z0-9'])")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"[a-z0-9]+", text.lower())


def letter(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply names: by the first letter that stands alone, else by the option's own words.

    `A` before a lower-case word is the article, not a letter.
    """
    for found in _STANDING.finditer(reply):
        index = ord(found[1]) - 65
        article = found[1] == "A" and re.match(r"\s+[a-z]", reply[found.end() :])
        if index < len(options) and not article:
            return found[1]
    said = words(reply)
    named = [i for i, option in enumerate(options) if words(option) and _within(words(option), said)]
    longest = [i for i in named if not any(i != k and _within(words(options[i]), words(options[k])) for k in named)]
    return chr(65 + longest[0]) if len(longest) == 1 else None


def _within(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def yes_no(reply: str) -> str | None:
    """`yes` or `no`, whichever of the two is said first; None if neither is."""
    said = next((word for word in words(reply) if word in ("yes", "no", "y", "n")), None)
    return None if said is None else "yes" if said.startswith("y") else "no"


def number(reply: str) -> int | None:
    """The first number of a reply, in digits or as a word up to twelve."""
    for word in words(reply):
        if word.isdigit():
            return int(word)
        if word in _NUMBERS:
            return _NUMBERS.index(word)
    return None


# -- as published -----------------------------------------------------------------------------------------------------


def compat_first_character(reply: str, key: str) -> bool:
    """StreamingBench, src/data/count.py."""
    return reply.strip()[:1] == key


def compat_letter_occurs(reply: str, key: str) -> bool:
    """OVO-Bench, utils/OVOBenchScore.py."""
    return key in reply


def compat_first_standing_letter(reply: str, key: str) -> bool:
    """StreamGaze, evaluate_results.py."""
    found = re.search(r"\b([ABCD])\b", reply.upper())
    return found is not None and found[1] == key


def compat_contains(reply: str, wanted: bool) -> bool:
    """StreamGaze's proactive tasks."""
    return ("YES" if wanted else "NO") in reply.upper()


def compat_yes_no(reply: str, wanted: bool) -> bool:
    """OVO-Bench's forward tasks."""
    return reply.strip() == ("Y" if wanted else "N") or ("Yes" if wanted else "No") in reply


def compat_digits(reply: str, count: int) -> bool:
    """OVO-Bench's counting: all digits of the reply, run together."""
    return "".join(re.findall(r"\d", reply)) == str(count)
