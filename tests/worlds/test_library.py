from __future__ import annotations

from penstock.worlds.library import documents, heldout_text, is_heldout, training_text


def test_the_split_is_disjoint_and_about_a_tenth() -> None:
    training, heldout = documents(heldout=False), documents(heldout=True)
    assert not {document.name for document in training} & {document.name for document in heldout}
    assert 0.04 < len(heldout) / (len(heldout) + len(training)) < 0.18
    assert sum(len(text) for text in training_text()) > 1_000_000


def test_the_split_depends_on_the_name_alone() -> None:
    names = ("ast", "base64", "bdb", "bisect", "calendar", "cmd", "code")
    assert [name for name in names if is_heldout(name)] == ["calendar", "code"]


def test_help_topics_and_modules_are_both_there() -> None:
    names = {document.name for side in (False, True) for document in documents(side)}
    assert "argparse" in names
    assert any(name.startswith("pydoc_data.topics.") for name in names)
    assert not any(name.startswith("encodings.") or ".test." in name for name in names)


def test_heldout_text_repeats_until_it_is_long_enough() -> None:
    once = "".join(heldout_text())
    more = "".join(heldout_text(len(once) + 1000))
    assert len(more) == len(once) + 1000
    assert more == once + once[:1000]
    assert "".join(heldout_text(10)) == once[:10]
