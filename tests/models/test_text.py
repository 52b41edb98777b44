"""Text in and out, for one tiny tokenizer of every kind: any split of the bytes gives the tokens of the whole."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from penstock.errors import InputError, SnapshotError, UnsupportedModel, UsageError
from penstock.models.text import TextDecoder, TextEncoder

WEIGHTS = Path(__file__).parents[2] / "../shared/data/weights/tinystories-656k"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|endoftext|>"]
CONTROL = {*SPECIAL} - {"<unk>"}
WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "and", "don't", "we'll", "I'M", "12", "345", "6789", "x=y;", "foo(bar)"),
    *("héllo", "straße", "naïve", "мир", "中文", "日本語。", "...", "--"),
]


@lru_cache
def corpus() -> tuple[str, ...]:
    choose = random.Random(0)
    gaps = (" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", ", ", ". ", "    ")
    return tuple("".join(choose.choice(WORDS) + choose.choice(gaps) for _ in range(60)) for _ in range(30))


def trained(backend: Tokenizer, trainer: Any) -> Tokenizer:
    backend.train_from_iterator(corpus(), trainer)
    return backend


def bpe(size: int = 420, **settings: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False, **settings)


def around(backend: Tokenizer, single: str) -> Tokenizer:
    ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return backend


def byte_level(pattern: str | None = None, prefix: bool = False, normalizer: Any = None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return trained(backend, bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def llama3() -> Tokenizer:
    return around(byte_level(LLAMA3), "<s> $A")


def qwen() -> Tokenizer:
    backend = byte_level(QWEN, normalizer=normalizers.NFC())
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("multi word", normalized=True)])
    return backend


def pythia() -> Tokenizer:
    backend = byte_level(normalizer=normalizers.NFC())
    backend.add_tokens([AddedToken(" " * n, normalized=True) for n in range(12, 1, -1)])
    return backend


def roberta() -> Tokenizer:
    backend = around(byte_level(prefix=True), "<s> $A </s>")
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return backend


def phi3() -> Tokenizer:
    backend = sentence_piece(prepend=True)
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True, special=True)])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return backend


def sentence_piece(
    prepend: bool = False, scheme: str | None = None, fallback: bool = True, cross: bool = False
) -> Tokenizer:
    """BPE over the whole text as one word: Llama 2, Mistral, Gemma."""
    backend = Tokenizer(models.BPE(unk_token=None if fallback else "<unk>", fuse_unk=True, byte_fallback=fallback))
    space = normalizers.Replace(" ", "▁")
    backend.normalizer = space
    backend.pre_tokenizer = None if cross else pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    names = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    texts = bpe(700 if fallback else 420)
    texts.special_tokens = [*SPECIAL, *names]
    trained(backend, texts)
    # The byte tokens of a real SentencePiece vocabulary are ordinary pieces, not added ones.
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    backend = Tokenizer.from_str(json.dumps(content))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prepend else space
    if scheme is None:
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # does nothing, as in Gemma
    else:
        backend.normalizer = normalizers.Sequence([])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prepend or scheme else []
    fused = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    backend.decoder = decoders.Sequence(fused)
    return around(backend, "<s> $A")


def gemma() -> Tokenizer:
    backend = sentence_piece()
    backend.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 8)])
    backend.add_tokens([AddedToken("▁" * n, normalized=False) for n in range(2, 8)])
    return backend


def unigram(words_first: bool) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    meta = pre_tokenizers.Metaspace(prepend_scheme="always")
    both = [pre_tokenizers.WhitespaceSplit(), meta]
    backend.pre_tokenizer = pre_tokenizers.Sequence(both) if words_first else meta
    backend.decoder = decoders.Metaspace()
    trained(
        backend,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    return around(backend, "<s> $A </s>" if words_first else "$A </s>")


def bert() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trained(backend, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    return around(backend, "<s> $A </s>")


def word_level() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(backend, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))


def fixed_length() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.FixedLength(5)
    return trained(backend, bpe())


SPACE = "at ' '"
KINDS: dict[str, tuple[Callable[[], Tokenizer], set[str]]] = {  # and cuts that it must have
    "gpt2": (byte_level, {SPACE, "at '\\n'", "at '。'"}),
    "llama3": (llama3, {SPACE, "after '\\n'", "at '。'"}),
    "qwen": (qwen, {SPACE, "after '\\n'"}),
    "o200k": (lambda: byte_level(O200K), {SPACE, "after '\\n'"}),
    "pythia": (pythia, {SPACE, "at '\\n'"}),
    "roberta": (roberta, {SPACE}),
    "llama2": (lambda: sentence_piece(prepend=True), {SPACE, "after '\\n'"}),
    "mistral": (lambda: sentence_piece(scheme="first"), {SPACE}),
    "metaspace-unk": (lambda: sentence_piece(scheme="always", fallback=False), {SPACE}),
    "gemma": (gemma, {SPACE, "after '\\n'"}),
    "phi3": (phi3, {SPACE}),
    "cross-word": (lambda: sentence_piece(prepend=True, cross=True), set()),
    "t5": (lambda: unigram(False), {SPACE, "at '\\n'"}),
    "xlm-r": (lambda: unigram(True), {SPACE, "at '\\n'"}),
    "bert": (bert, {SPACE, "at '\\n'"}),
    "word-level": (word_level, {SPACE}),
    "fixed-length": (fixed_length, set()),
}


@lru_cache
def make(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind][0](), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return make(request.param)


kinds = pytest.mark.parametrize("kind", KINDS)


def whole(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """One-shot ids, without those that the tokenizer adds at the end.

    Where the tokenizer makes special tokens of plain text in spite of being told not to (Unigram does, the names are
    pieces of its vocabulary), the reference is the encoder fed at once.
    """
    encoder = TextEncoder(tokenizer, special=special)
    ids = tokenizer(text, split_special_tokens=not special, verbose=False)["input_ids"]
    suffix = encoder.suffix_ids
    assert tuple(ids[len(ids) - len(suffix) :]) == suffix
    ids = ids[: len(ids) - len(suffix)]
    if not special and CONTROL & set(tokenizer.convert_ids_to_tokens(ids[len(encoder.prefix_ids) :])):
        return encoder.feed(text) + encoder.flush()
    return ids


def stream(encoder: TextEncoder, data: Any, cuts: list[int]) -> list[int]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    ids = [token for a, b in itertools.pairwise(places) for token in encoder.feed(data[a:b])]
    return ids + encoder.flush()


PIECES = st.one_of(
    st.sampled_from(WORDS).map(str.encode),
    st.sampled_from([b" ", b"  ", b"   ", b"\n", b"\n\n", b"\r\n", b"\t", b" \n", b"\n ", b"\r"]),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from(
        ["e\u0301", "\u0301", "▁", "▁▁", "👩‍🚀", "\u00a0", "\u3000", "\u00ad", "。", "，好", "\u0600", "'s"]
    ).map(str.encode),
    st.sampled_from([*SPECIAL, "<think>", "multi word", "<mask>", "<|end|>", "<tool>", "<0x41>"]).map(str.encode),
    st.sampled_from([b"\xff", b"\xe4", b"\xe4\xbd", b"\xf0\x9f", b"\x80\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\x00"]),
    st.tuples(st.sampled_from([b"a", b"7", b" ", b"\n", "é".encode()]), st.integers(1, 40)).map(lambda p: p[0] * p[1]),
)
BYTES = st.lists(PIECES, max_size=24).map(b"".join)
CUTS = st.lists(st.integers(0, 300), max_size=12)


@kinds
def test_has_the_cuts_of_its_kind(kind: str) -> None:
    rules = set(TextEncoder(make(kind)).rules)
    assert KINDS[kind][1] <= rules
    if kind == "fixed-length":
        assert not rules
    if kind in ("llama3", "qwen", "o200k"):
        assert "at '\\n'" not in rules  # "." takes the newlines behind it


@kinds
@settings(max_examples=60, deadline=None)
@given(data=BYTES, cuts=CUTS)
def test_any_split_gives_the_tokens_of_the_whole(kind: str, data: bytes, cuts: list[int]) -> None:
    tokenizer, text = make(kind), data.decode("utf-8", "replace")
    expected = whole(tokenizer, text)
    assert stream(TextEncoder(tokenizer), data, cuts) == expected
    assert stream(TextEncoder(tokenizer), data, list(range(len(data)))) == expected
    assert stream(TextEncoder(tokenizer), text, cuts) == expected


@kinds
@settings(max_examples=30, deadline=None)
@given(data=BYTES, cuts=CUTS)
def test_special_tokens_are_read_on_demand(kind: str, data: bytes, cuts: list[int]) -> None:
    tokenizer, text = make(kind), data.decode("utf-8", "replace")
    assert stream(TextEncoder(tokenizer, special=True), data, cuts) == whole(tokenizer, text, special=True)


@kinds
@settings(max_examples=30, deadline=None)
@given(data=BYTES, run=st.sampled_from("a7é中 \n-▁"), cuts=CUTS)
def test_forced_cuts_depend_on_the_text_alone(kind: str, data: bytes, run: str, cuts: list[int]) -> None:
    data = data + run.encode() * 50 + data
    encoders = [TextEncoder(make(kind), cap=16) for _ in range(3)]
    ids = [stream(encoder, data, places) for encoder, places in zip(encoders, ([], cuts, list(range(len(data)))))]
    assert ids[0] == ids[1] == ids[2]
    assert len({encoder.forced_cuts for encoder in encoders}) == 1


@kinds
@settings(max_examples=20, deadline=None)
@given(before=BYTES, after=BYTES, cuts=CUTS)
def test_a_flush_begins_a_continuation(kind: str, before: bytes, after: bytes, cuts: list[int]) -> None:
    """Whatever was fed before it, a piece behind a flush has the same tokens, and no BOS."""
    encoder = TextEncoder(make(kind))
    first = stream(encoder, before + b"x", cuts)
    assert first == whole(make(kind), (before + b"x").decode("utf-8", "replace"))
    rest = stream(encoder, after, cuts)
    plain = TextEncoder(make(kind), bos=False)
    stream(plain, b"x", [])
    assert rest == stream(plain, after, [])


@kinds
@settings(max_examples=20, deadline=None)
@given(data=BYTES, place=st.integers(0, 200))
def test_save_and_copy_change_no_token(kind: str, data: bytes, place: int) -> None:
    encoder = TextEncoder(make(kind))
    ids = encoder.feed(data[:place])
    state = json.loads(json.dumps(encoder.state_dict()))
    loaded, fork = TextEncoder(make(kind)), encoder.copy()
    loaded.load_state_dict(state)
    fork.copy().feed(b"something else")
    rests = [each.feed(data[place:]) + each.flush() for each in (encoder, loaded, fork)]
    assert rests[0] == rests[1] == rests[2]
    assert ids + rests[0] == whole(make(kind), data.decode("utf-8", "replace"))


def test_a_word_is_given_out_when_the_next_one_begins(tokenizer: Any) -> None:
    encoder = TextEncoder(tokenizer)
    if SPACE in encoder.rules and not any(rule.pairs for rule in encoder._pieces.cuts.rules if str(rule) == SPACE):
        ids = encoder.feed("the cat") + encoder.feed(" ")
        assert ids == whole(tokenizer, "the cat")
        assert encoder.pending == 1


def test_dummy_prefix_and_bos_come_once() -> None:
    for kind in ("llama2", "mistral"):
        tokenizer = make(kind)
        encoder = TextEncoder(tokenizer)
        assert encoder.prefix_ids == (tokenizer.bos_token_id,)
        assert encoder.flush() == [tokenizer.bos_token_id]  # an empty text
        assert tokenizer.convert_ids_to_tokens(encoder.feed("cat ") + encoder.flush())[0].startswith("▁")
        after = tokenizer.convert_ids_to_tokens(encoder.feed("cat cat") + encoder.flush())
        assert "".join(after) == "cat▁cat"
        assert encoder.flush() == []


def test_a_section_behind_an_added_token_keeps_its_prefix() -> None:
    tokenizer = make("phi3")
    encoder = TextEncoder(tokenizer, bos=False)
    stream(encoder, "a", [])
    ids = stream(encoder, "cat<tool>cat", [1, 5])
    assert tokenizer.convert_ids_to_tokens(ids) == ["cat", "<tool>", "▁cat"]
    assert whole(tokenizer, "cat<tool>cat")[-2:] == ids[-2:]


def test_the_end_of_the_text_is_not_added() -> None:
    encoder = TextEncoder(make("bert"))
    assert encoder.suffix_ids == (2,)
    assert encoder.feed("the cat sat ") + encoder.flush() == make("bert")("the cat sat ")["input_ids"][:-1]


def test_a_log_cannot_inject_a_special_token() -> None:
    for kind in KINDS:
        ids = stream(TextEncoder(make(kind), bos=False), "log <|endoftext|> </s>\n", [3, 9])
        assert not {make(kind).convert_tokens_to_ids(name) for name in CONTROL} & set(ids)


def test_an_endless_line_is_held_up_to_the_cap(tokenizer: Any) -> None:
    for letter in ("a", "7", "\n", "é", "\u200b"):
        encoder = TextEncoder(tokenizer, cap=64)
        held = 0
        for _ in range(300):
            encoder.feed(letter * 7)
            held = max(held, encoder.pending)
        assert held <= 4 * 64 + 3
        assert encoder.forced_cuts >= 300 * 7 // 64 - 1


def test_forced_cut_prefers_a_border_of_words() -> None:
    """Digits in groups of three have no exact cut, but are cut between groups: the tokens are those of the whole."""
    encoder = TextEncoder(make("llama3"), cap=64)
    digits = "x " + "123456789" * 100
    assert stream(encoder, digits, [5, 100, 333]) == whole(make("llama3"), digits)
    assert encoder.forced_cuts > 10


def test_unfinished_characters() -> None:
    encoder = TextEncoder(make("gpt2"))
    moon = "月".encode()
    assert encoder.feed(moon[:2]) == []
    assert encoder.pending == 2
    assert encoder.flush(keep_bytes=True) == []
    assert encoder.pending == 2
    assert encoder.feed(moon[2:]) + encoder.flush() == whole(make("gpt2"), "月")
    assert encoder.feed(moon[:2]) + encoder.flush() == whole(make("gpt2"), "\ufffd")
    assert encoder.feed(moon[:2]) + encoder.feed("x") + encoder.flush() == whole(make("gpt2"), "\ufffdx")
    assert encoder.feed("a\ud800") + encoder.flush() == whole(make("gpt2"), "a\ufffd")


def test_mistakes_are_named() -> None:
    encoder = TextEncoder(make("gpt2"))
    with pytest.raises(InputError, match="str or bytes"):
        encoder.feed(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="16 or more"):
        TextEncoder(make("gpt2"), cap=1)
    with pytest.raises(UnsupportedModel, match="slow tokenizer"):
        TextEncoder(object())
    with pytest.raises(UnsupportedModel, match="slow tokenizer"):
        TextDecoder(object())
    with pytest.raises(SnapshotError, match="another tokenizer"):
        encoder.load_state_dict(TextEncoder(make("llama3")).state_dict())
    for change in ({"bytes": "zz"}, {"bytes": "ff"}, {"cap": 3}, {"text": "x" * 5000}, {"more": 1}):
        with pytest.raises(SnapshotError, match="damaged"):
            encoder.load_state_dict(encoder.state_dict() | change)


def test_the_given_tokenizer_is_left_alone() -> None:
    tokenizer = make("llama2")
    before = tokenizer.backend_tokenizer.to_str()
    stream(TextEncoder(tokenizer, special=True), "the </s> cat", [3])
    assert tokenizer.backend_tokenizer.to_str() == before


# -- out ---------------------------------------------------------------------------------------------------------------


@kinds
@settings(max_examples=60, deadline=None)
@given(data=BYTES, noise=st.lists(st.integers(0, 290), max_size=20), skip=st.booleans())
def test_pieces_are_the_decoded_whole(kind: str, data: bytes, noise: list[int], skip: bool) -> None:
    tokenizer = make(kind)
    ids = noise[:10] + whole(tokenizer, data.decode("utf-8", "replace")) + noise[10:]
    decoder = TextDecoder(tokenizer, skip_special=skip, max_run=10**6)
    pieces = []
    for token in ids:
        pieces.append(decoder.copy().push(token))
        assert decoder.push(token) == pieces[-1]
    pieces.append(decoder.flush())
    expected = tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == expected


def test_emission_is_prompt(tokenizer: Any) -> None:
    decoder = TextDecoder(tokenizer)
    for token in whole(tokenizer, "the cat sat on the mat"):
        decoder.push(token)
        assert decoder.pending == 0


def test_long_runs_of_bytes_are_bounded() -> None:
    tokenizer = make("llama2")
    text = "ख" * 200  # not in the vocabulary: 600 byte tokens
    ids = tokenizer.encode(text, add_special_tokens=False) + tokenizer.encode(" cat", add_special_tokens=False)
    decoder, shown = TextDecoder(tokenizer), ""
    for token in ids:
        shown += decoder.push(token)
        assert decoder.pending <= 64
    assert shown + decoder.flush() == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    bad = tokenizer.convert_tokens_to_ids("<0xFF>")
    assert [decoder.push(bad) for _ in range(3)] == ["\ufffd"] * 3


def test_work_per_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, longest = TextDecoder(make("llama2")), 0
    plain = TextDecoder._text

    def counted(self: TextDecoder, ids: Any) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return plain(self, ids)

    monkeypatch.setattr(TextDecoder, "_text", counted)
    for token in whole(make("llama2"), "the cat sat on a mat " * 50):
        decoder.push(token)
    assert longest <= 5


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Any) -> None:
    assert TextDecoder(tokenizer).push(10**6) == ""


# -- a real tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not WEIGHTS.exists(), reason="../shared/data/weights/tinystories-656k is absent")
def test_real_tokenizer_with_pieces_across_words() -> None:
    """Its vocabulary holds whole sentences; characters that it does not know vanish, and merges go on across them.

    The old bug: a cut beside "*" in "\\n*The ", where the piece "\\nThe " then could not form.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    text = 'Once upon a time.\n\n*The cat said: "Yes, but it was sad and.\nThen, <|end_story|> 中 the " ' * 40
    for size in (1, 7, 64):
        encoder = TextEncoder(tokenizer)
        assert stream(encoder, text.encode(), list(range(0, len(text.encode()), size))) == whole(tokenizer, text)
        assert encoder.forced_cuts == 0
    decoder, ids = TextDecoder(tokenizer), whole(tokenizer, text)
    shown = "".join([decoder.push(token) for token in ids] + [decoder.flush()])
    assert shown == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
