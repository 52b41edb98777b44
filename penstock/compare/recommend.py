"""A choice of memory from stored comparisons, with its reason.

    near   facts that stand within the budget, and the loss
    far    facts that stand ten budgets back or more
    loss   the loss on the stream alone

Among the rows that keep the limits, those whose recall lies within `CLOSE` of the best are equally good for a question;
then the lower loss (if it is lower by `NATS`), the fewer bytes and the shorter step decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import InputError

QUESTIONS = ("near", "far", "loss")
CLOSE = 0.03  # recall
NATS = 0.02  # nats per token
_FAR = 10  # budgets

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a memory may take; None is no limit."""

    device: int | None = None  # bytes
    ram: int | None = None  # bytes
    disk: int | None = None  # bytes
    step_ms: float | None = None  # p99


@dataclass(frozen=True)
class Choice:
    """The chosen row, the next best, and why."""

    row: Row
    others: tuple[Row, ...]
    reason: str


def recall_for(row: Row, question: str) -> float | None:
    """Recall over the bins that matter for a question; None where the comparison has none."""
    budget = row["budget"]
    bins = [each for each in row["recall"]
            if (each["to"] <= budget if question == "near" else each["from"] >= _FAR * budget)]  # fmt: skip
    count = sum(each["n"] for each in bins)
    return sum(each["recall"] * each["n"] for each in bins) / count if count else None


def total_bytes(row: Row) -> int:
    return sum(int(row["bytes"][tier] or 0) for tier in ("device", "ram", "disk"))


def broken_limits(row: Row, limits: Limits) -> list[str]:
    """Which limits a row does not keep."""
    size, slow = row["bytes"], row["step_ms"]["p99"]
    out = [tier for tier in ("device", "ram", "disk")
           if (limit := getattr(limits, tier)) is not None and size[tier] > limit]  # fmt: skip
    if limits.step_ms is not None and (slow is None or slow > limits.step_ms):
        out.append("step_ms")
    return out


def recommend(rows: Sequence[Row], question: str, limits: Limits) -> Choice:
    """The best row for a question within the limits.

    Raises:
        InputError: no stored row was asked such questions, or none keeps the limits; says what would help.
    """
    asked = [row for row in rows if question == "loss" or recall_for(row, question) is not None]
    asked = [row for row in asked if row["nll_mean"] is not None]
    if not asked:
        raise InputError(
            f"no stored comparison answers '{question}' questions: run penstock compare with --tokens of at least 30 "
            "times the budget first."
        )
    fitting = [row for row in asked if not broken_limits(row, limits)]
    if not fitting:
        raise InputError(_nothing_fits(asked, limits))
    ranked = sorted(fitting, key=lambda row: _rank(row, question, fitting))
    best = ranked[0]
    return Choice(best, tuple(ranked[1:]), _reason(best, ranked[1:], question, limits, asked))


def _rank(row: Row, question: str, rows: Sequence[Row]) -> tuple[Any, ...]:
    """Smaller is better: tiers of recall below the best, tiers of loss above the best, bytes, latency."""
    lost = 0
    if question != "loss":
        top = max(recall_for(other, question) or 0.0 for other in rows)
        lost = int((top - (recall_for(row, question) or 0.0)) / CLOSE + 1e-9)
    floor = min(other["nll_mean"] for other in rows)
    worse = int((row["nll_mean"] - floor) / NATS + 1e-9) if question != "far" else 0
    return lost, worse, total_bytes(row), row["step_ms"]["p50"] or 0.0, row["memory"], row["budget"]


def _nothing_fits(rows: Sequence[Row], limits: Limits) -> str:
    device = min(rows, key=lambda row: row["bytes"]["device"])
    if limits.device is not None and device["bytes"]["device"] > limits.device:
        return (
            f"no compared memory fits in {limits.device} bytes: the smallest, {device['memory']} with a budget of "
            f"{device['budget']}, took {device['bytes']['device']}; give at least that, or compare smaller budgets."
        )
    quick = min(rows, key=lambda row: row["step_ms"]["p99"] or float("inf"))
    return (
        f"no compared memory keeps these limits together: the quickest, {quick['memory']}, needs "
        f"{quick['step_ms']['p99']:.1f} ms; loosen one of them."
    )


def _reason(best: Row, others: Sequence[Row], question: str, limits: Limits, asked: Sequence[Row]) -> str:
    """One or two sentences."""
    what = {
        "near": "facts within its budget", "far": f"facts {_FAR} budgets back or more", "loss": "the stream"
    }[question]  # fmt: skip
    if question == "loss":
        first = f"It reads the stream at {best['nll_mean']:.3f} nats per token"
    else:
        first = f"It recalls {recall_for(best, question):.0%} of {what} at {best['nll_mean']:.3f} nats per token"
    first += f" and holds {_size(best['bytes']['device'])} on the device"
    first += f", {_size(best['bytes']['ram'])} in RAM" if best["bytes"]["ram"] else ""
    first += f", {_size(best['bytes']['disk'])} on disk" if best["bytes"]["disk"] else ""
    second = _against(best, others, question)
    if not second:
        out = len(asked) - 1 - len(others)
        second = f"the other {out} compared rows do not keep the limits" if out else "no other row was compared"
    return f"{first}; {second}."


def _against(best: Row, others: Sequence[Row], question: str) -> str:
    """What sets the choice apart from the next method."""
    rival = next((row for row in others if row["memory"] != best["memory"]), others[0] if others else None)
    if rival is None:
        return ""
    name = f"{rival['memory']} ({rival['budget']})"
    if question != "loss":
        mine, its = recall_for(best, question) or 0.0, recall_for(rival, question) or 0.0
        if mine - its >= CLOSE:
            return f"the next, {name}, recalls {its:.0%}"
    if rival["nll_mean"] - best["nll_mean"] >= NATS:
        return f"the next, {name}, reads at {rival['nll_mean']:.3f}"
    if total_bytes(rival) > total_bytes(best):
        return f"{name} does as well and holds {_size(total_bytes(rival))} in all"
    return f"{name} does as well, its step takes {rival['step_ms']['p50']:.1f} ms at the median"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
