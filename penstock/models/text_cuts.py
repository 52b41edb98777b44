"""Where a growing text may be cut so that both parts tokenize as they do together.

A *cut* at character c of a text T is exact when, for everything that may still follow T, the tokens of T are the
tokens of T[:c] followed by the tokens of T[c:] encoded as a continuation (no dummy prefix). Every rule here looks at
the two characters around c only, `l = T[c-1]` and `r = T[c]`, so it needs no further text to decide and its verdict
never depends on how the text arrived:

    at " " "\\t" "\\n" "\\r"    l is a visible character, r is this white space
    after "\\n"               l is a newline, r is a visible character other than "/"
    at full-width 。，、！？；：  l is a letter or a number, r is this mark

A visible character is a letter, number, punctuation mark or symbol (Unicode L, N, P, S) that the normalizer leaves
visible. A tokenizer gets the rules that hold for each of its four stages:

1. Added tokens are matched on the text. Neighbours that stand beside r in an active added token are no l; nor is the
   last character of one that eats or changes what follows it (`rstrip`, or a normalizer that prepends to every section
   of the text); a token that eats white space before it (`lstrip`) forbids cuts after a newline.
2. Normalizer. White space, newline and the marks above are starters that compose with nothing before them, so NFC,
   NFD, NFKC and NFKD have a boundary before them, and a newline composes with nothing after it. Marks and format
   characters are no l (they can join the character before them in one grapheme, which SentencePiece character maps
   replace as a whole). Mappings of single characters and collapsing runs of white space are local, because a run is
   never cut. Stripping acts at the ends of the stream only.
3. Pre-tokenizer. GPT-2: every branch of the pattern is an optional leading space and then no white space, or white
   space only, so a visible character followed by white space ends a pre-token, whatever follows. Llama 3, Qwen, o200k,
   tekken, DeepSeek: the same before " " and "\\t"; but punctuation takes the newlines (o200k: and slashes) after it, so
   "at newline" fails, and "after newline" holds because a branch takes a run of white space up to its last newline.
   (In GPT-2 it does not: "\\n\\n" is one token at the end of a text and two before a letter.) Metaspace with split,
   BERT, WhitespaceSplit: white space always borders. Between borders each word is encoded by itself, whatever the model
   (BPE, Unigram, WordPiece, WordLevel).
4. Model, where there is no border (the whole text is one word: Llama 2, Mistral, Gemma). A BPE merge across c makes a
   piece of the vocabulary that contains l and r side by side. Where the vocabulary has no such piece no merge crosses
   c, and merges on one side never wait for those on the other, so the sides are independent. Each l is checked against
   the pieces that hold r ("▁" for a space); both must be known to the model: unknown characters are fused or vanish.
   Unigram without a border gets no rule: its best path is a sum of floats over the whole text, where ties break by
   rounding. WordPiece and WordLevel neither.

Patterns come in many dialects, so nothing is believed by name: stages 2 and 3 of every tokenizer run once over a
fixed text of some thousand characters (words, digits, contractions, scripts, marks, emoji, all kinds of white space),
whole and cut; a rule that fails once is dropped, and so is one that changes an id. A tokenizer left with no rule
(`FixedLength`, say) is still served: its text waits for a flush or for the cap. The limit of this check: an unknown
pattern that looks at more than the text near a border, in a way that the fixed text does not show.
"""

from __future__ import annotations

import itertools
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer

# Letters and symbols that join the next or the previous character in one grapheme.
_JOINING = frozenset(
    "\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86\U00011a87"
    "\U00011a88\U00011a89\U00011d46\U00011f02\uff9e\uff9f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
)

_UNITS = (
    *"abQz07.,!'\"()-/_$<>@\\#éßİſ中文のカ한дع。，、！？；：▁ĠĊ�①²ﬁ½🙂ʼ",
    *("the", "and", "Don't", "I'LL", "we're", "x's", "123", "45678", "3.14", "foo_bar", "a/b", "...", "-->", "?!"),
    *("http://x.y/z", "<b>", "Ünï", "日本", "中文。", "मानक", "นี่", "👩\u200d🚀", "🇫🇷"),
    *(" ", " ", " ", "  ", "   ", "\n", "\n", "\n\n", " \n", "\n ", " \n\n  ", "\r\n", "\r", "\t", "\t\t", "\u00a0"),
    *("\u3000", "\u2003", "\u2028", "\x85", "\x1c", "\x00", "\x7f", "\u200b", "\u200d", "\u00ad", "\ufeff"),
    *("e\u0301", "\u0301", "\u0308", "\uff9e", "\u1100\u1161", "\u0600", "\u093f", "\u0e33", ".\n", "!\n/", ")\n\n"),
)


@lru_cache(maxsize=1)
def probe_text() -> str:
    """The fixed text of every kind of neighbour that the rules are tried on, about 5000 characters."""
    choose = random.Random(1)
    return "".join(choose.choice(_UNITS) for _ in range(2600))


@dataclass(frozen=True)
class Rule:
    """A cut before (`at`) or behind (`after`) one character, where the character on its other side allows it.

    `kinds`: Unicode categories (first letter) of allowed neighbours. `never`: neighbours that an added token forbids,
    case-folded. `pairs`: neighbours that share a vocabulary piece with `char`; None where words end and nothing is
    shared. `known`: verdicts found so far, per neighbour.
    """

    char: str
    after: bool = False
    kinds: str = "LNPS"
    never: frozenset[str] = frozenset()
    pairs: frozenset[str] | None = None
    known: dict[str, bool] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{'after' if self.after else 'at'} {self.char!r}"


RULES = (
    *(Rule(char) for char in " \t\n\r"),
    Rule("\n", after=True),
    *(Rule(char, kinds="LN") for char in "。，、！？；："),
)


class Cuts:
    """The exact cuts of one tokenizer.

    `tail` encodes a continuation, `added` are the added tokens that text can match, `sections_change`: the normalizer
    adds to the text behind each of them; `encode_head`/`encode_tail` turn a piece at the start of a stream, or behind
    a cut, into ids. Building runs the checks of the module docstring (about 0.2 s).
    """

    def __init__(
        self,
        tail: Tokenizer,
        added: list[AddedToken],
        sections_change: bool,
        encode_head: Callable[[str], list[int]],
        encode_tail: Callable[[str], list[int]],
    ) -> None:
        self._model = tail.model  # getters copy: once, not per call
        self._normalizer = tail.normalizer
        self._pre_tokenizer = tail.pre_tokenizer
        self._vocabulary = tail.get_vocab(with_added_tokens=False)
        self._added = [(token, {token.content, self._normalize(token.content)} - {""}) for token in added]
        self._sections_change = sections_change
        self.rules: tuple[Rule, ...] = ()
        proven = tuple(rule for rule in map(self._prove, RULES) if rule is not None)
        self._arrange(proven)
        if not self._same_ids(encode_head, encode_tail):
            self._arrange(tuple(rule for rule in proven if self._same_ids(encode_head, encode_tail, (rule,))))

    def last(self, text: str, low: int, high: int) -> int:
        """The largest exact cut c with low <= c <= high and c < len(text), or 0. Costs O(high - low)."""
        best, low = 0, max(low, 1)
        for rule in self._ascii if text.isascii() else self.rules:
            shift = 1 if rule.after else 0
            stop = min(high + 1, len(text)) - shift
            at = text.rfind(rule.char, max(low, best + 1) - shift, stop)
            while at >= 0 and not self._allows(rule, text[at + 1 if rule.after else at - 1]):
                at = text.rfind(rule.char, max(low, best + 1) - shift, at)
            best = max(best, at + shift) if at >= 0 else best
        return best

    def _arrange(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._ascii = tuple(rule for rule in rules if rule.char.isascii())

    def _allows(self, rule: Rule, char: str) -> bool:
        """Whether a cut between `rule.char` and this neighbour is exact."""
        known = rule.known.get(char)
        if known is None:
            known = rule.known[char] = self._judge(rule, char)
        return known

    def _judge(self, rule: Rule, char: str) -> bool:
        form = self._normalize(char)
        near = 0 if rule.after else -1
        if char in _JOINING or not form or (rule.after and char == "/"):
            return False
        if any(unicodedata.category(end)[0] not in rule.kinds for end in (char, form[0], form[-1])):
            return False
        if rule.never & {char.casefold(), form[near].casefold()}:
            return False
        if rule.pairs is None:
            return True
        seen = self._form(char)[near]
        return seen not in rule.pairs and self._model_has(seen)

    def _normalize(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer.normalize_str(text)

    def _words(self, normal: str) -> list[tuple[str, tuple[int, int]]]:
        if self._pre_tokenizer is None or not normal:
            return [(normal, (0, len(normal)))] if normal else []
        return self._pre_tokenizer.pre_tokenize_str(normal)

    def _form(self, char: str) -> str:
        """What the model sees of one character: "▁" or "Ġ" for a space."""
        return "".join(word for word, _ in self._words(self._normalize(char)))

    # -- building --------------------------------------------------------------------------------------------------

    def _prove(self, rule: Rule) -> Rule | None:
        """The rule with its forbidden neighbours, or None where it does not hold for this tokenizer."""
        marks = {rule.char, *self._normalize(rule.char)}
        if any(
            token.lstrip if rule.after else token.single_word and any(content[0] in marks for content in contents)
            for token, contents in self._added
        ):
            return None
        rule = replace(rule, never=frozenset(self._never(rule, marks)), known={})
        self._arrange((rule,))
        pieces = list(self._pieces(probe_text()))
        normals = [self._normalize(piece) for piece in pieces]
        whole = self._normalize(probe_text())
        if len(pieces) < 2 or "".join(normals) != whole:
            return None
        ends = list(itertools.accumulate(map(len, normals)))
        words = self._words(whole)
        apart = [
            (word, (start + end - len(normal), stop + end - len(normal)))
            for normal, end in zip(normals, ends)
            for word, (start, stop) in self._words(normal)
        ]
        if words == apart:
            return rule  # every cut is a border of words, and words restart behind it
        if _borders(words).union(ends) != _borders(apart).union(ends) or _joined(words) != _joined(apart):
            return None
        return self._prove_by_vocabulary(rule)

    def _never(self, rule: Rule, marks: set[str]) -> Iterator[str]:
        """Neighbours with which an added token crosses the cut, or changes what is behind it."""
        for token, contents in self._added:
            for content in contents:
                for left, right in itertools.pairwise(content):
                    if (left if rule.after else right) in marks:
                        yield (right if rule.after else left).casefold()
                if not rule.after and (token.rstrip or self._sections_change):
                    yield content[-1].casefold()

    def _prove_by_vocabulary(self, rule: Rule) -> Rule | None:
        """Some cuts are inside a word: no vocabulary piece may cross them."""
        if type(self._model).__name__ != "BPE":
            return None
        if self._model.continuing_subword_prefix or self._model.end_of_word_suffix:
            return None
        form = self._form(rule.char)
        if not form or not self._model_has(form[-1 if rule.after else 0]):
            return None
        char = re.escape(form[-1] if rule.after else form[0])
        pairs = re.findall(f"(?s)(?<={char})." if rule.after else f"(?s).(?={char})", "\0".join(self._vocabulary))
        return replace(rule, pairs=frozenset(pairs), known={})

    def _model_has(self, char: str) -> bool:
        """Whether the model knows the character, itself or as bytes."""
        if char in self._vocabulary:
            return True
        return self._model.byte_fallback and all(f"<0x{byte:02X}>" in self._vocabulary for byte in char.encode())

    def _pieces(self, text: str) -> Iterator[str]:
        """The text, cut wherever a rule allows."""
        start = 0
        for cut in range(1, len(text)):
            if self.last(text, cut, cut):
                yield text[start:cut]
                start = cut
        yield text[start:]

    def _same_ids(
        self, head: Callable[[str], list[int]], tail: Callable[[str], list[int]], rules: tuple[Rule, ...] | None = None
    ) -> bool:
        """Whether a text with added tokens in it has the same ids whole and cut, by these rules or the present ones."""
        if rules is not None:
            self._arrange(rules)
        names = [token.content for token, _ in self._added][:64]
        choose = random.Random(2)
        text = "".join(
            part + (choose.choice(names) if names and i % 16 == 5 else "")
            for i, part in enumerate(re.findall(r"(?s).{1,3}", probe_text()))
        )
        first, *rest = self._pieces(text)
        return head(text) == head(first) + [token for piece in rest for token in tail(piece)]


def _borders(words: list[tuple[str, tuple[int, int]]]) -> set[int]:
    return {place for _, span in words for place in span}


def _joined(words: list[tuple[str, tuple[int, int]]]) -> str:
    return "".join(word for word, _ in words)
