"""The words that the facts world is made of.

Every word of `ADJECTIVES`, `NOUNS` and `ANSWERS` is one token (with its leading space) in the tokenizer that
`penstock.worlds.tokenizer` trains. No word is in two of the lists, so an answer is never part of a key.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANSWERS: tuple[str, ...] = _words(
    """amber azure beige black blue bronze brown coral cream cyan gold gray green indigo ivory jade
    lemon lilac lime mauve olive orange peach pink plum purple red rose ruby silver teal white"""
)

ADJECTIVES: tuple[str, ...] = _words(
    """able ancient bold brave brief bright broad busy calm careful cheap clean clever close cold cool
    crisp curious damp dark deep dense dry dull eager early easy empty faint fair fast final
    firm first flat formal free fresh full gentle giant glad good grand grave great happy hard
    heavy high hollow honest humble keen kind large late lazy light little local long loose loud
    lucky major minor modern narrow new noble odd old open patient plain polite proud pure quick
    quiet rapid rare ready rich rough round rural safe sharp short simple slow small strong warm"""
)

NOUNS: tuple[str, ...] = _words(
    """actor anchor apple arrow badge baker barn basket beacon bell bench bird boat book bottle box
    branch bread bridge brush bucket button cabin camel candle canoe captain castle cave chair chapel clock
    cloud coat cook corner cousin crane crow dancer deer desk doctor door dragon drum duke eagle
    engine farmer fence ferry field finger fish flag flute forest fox friend garden gate ghost goat
    guard guest hammer harbor hat horse house island judge kettle king kitchen ladder lamp lantern leaf
    letter lion mayor mill mirror mouse nurse otter owl painter pilot piper queen river sailor tower"""
)

PLACES: tuple[str, ...] = _words("market station village valley library school bakery temple museum orchard")

TIMES: tuple[str, ...] = _words("morning evening summer winter spring autumn Monday Friday noon midnight")

# {a} adjective, {n} noun, {m} another noun, {p} place, {t} time, {d} digits
SENTENCES: tuple[str, ...] = (
    "The {a} {n} walked past the {p} in the {t}.",
    "A {n} and a {m} met near the {p}.",
    "Nobody saw the {a} {n} after {t}.",
    "The {p} was closed for {d} days.",
    "There were {d} letters for the {n} on the table.",
    "In the {t} the {n} painted a {a} {m}.",
    "It rained over the {p} until {t}.",
    "The {n} asked the {m} for a map of the {p}.",
    "People say that the {a} {n} sings at {t}.",
    "We counted {d} steps from the {p} to the {n}.",
    "A {a} {n} slept under the {m}.",
    "The price of a {n} rose to {d} coins.",
    "She left her {n} by the {a} {m}.",
    "He wrote about the {n} of the {p} every {t}.",
    "The road to the {p} was {a} and long.",
    "Then the {n} gave {d} nuts to the {m}.",
    "They carried the {n} home before {t}.",
    "Behind the {p} stood a {a} {n}.",
)
