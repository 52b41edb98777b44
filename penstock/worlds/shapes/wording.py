"""What is asked about the shapes world and how it is answered, as text; every answer begins with a space."""

from __future__ import annotations

import random
from collections.abc import Iterator

from penstock.worlds.shapes.things import COLOURS, PLACES, SHAPES, Look

NOT_SEEN = " not seen"
NOTHING = " nothing"
THEY_MEET = " they meet"
NUMBERS = (" none", " one", " two", " three", " four")

TELL_ANY = "\nTell me what comes."
TELL_MEET = "\nTell me when two things meet."
STOP = "\nStop telling me."


def what_at(place: int) -> str:
    return f"\nWhat is {PLACES[place]}?"


def how_many() -> str:
    return "\nHow many things are there?"


def where(look: Look) -> str:
    return f"\nWhere was the {look}?"


def plate_of(look: Look, place: int) -> str:
    return f"\nWhat was the {COLOURS[look.colour]} {SHAPES[look.shape]} {PLACES[place]} on?"


def later(first: Look, second: Look) -> str:
    return f"\nWhich came later, the {first} or the {second}?"


def tell_when(look: Look) -> str:
    return f"\nTell me when the {look} comes."


def name(look: Look) -> str:
    """The answer that names a thing."""
    return f" {look}"


def corpus(seed: int, count: int) -> Iterator[str]:
    """Questions and answers with random content, for the tokenizer."""
    draw = random.Random(f"wording:{seed}")

    def look() -> Look:
        colour, plate = draw.sample(range(len(COLOURS)), 2)
        return Look(draw.randrange(len(SHAPES)), colour, plate)

    for word in (*SHAPES, *COLOURS, *PLACES):  # often enough that each becomes one token
        yield f" {word}\n" * 20 * count
    for _ in range(count):
        one, place = look(), draw.randrange(4)
        yield from (here(one), DO_MEET, YES, NO)
        yield from (what_at(place), how_many(), where(one), plate_of(one, place), later(one, look()), tell_when(one))
        yield from (TELL_ANY, TELL_MEET, STOP, NOT_SEEN, NOTHING, THEY_MEET, *NUMBERS, name(one), f" {PLACES[place]}")


def here(look: Look) -> str:
    return f"\nIs the {look} here?"


DO_MEET = "\nDo two things meet?"
YES, NO = " yes", " no"
