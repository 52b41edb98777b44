"""Prompts that are known together: what several of them begin with is read once, and forked.

A tree of the prompts has shared runs on several levels; a fork has one.  So the tree is collapsed to one level of
shared prefixes (BatchLLM, arXiv:2412.03594): a run `g` below a run `c` with `w` prompts under it becomes a prefix
`c + g` of its own if that saves more than storing `c` twice costs, `(w - 1) * |g| > |c|`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.engine.engine import Engine
    from penstock.engine.session import EngineSession


@dataclass(frozen=True)
class Group:
    """Prompts (by index) that share what they begin with."""

    shared: tuple[int, ...]
    members: tuple[int, ...]


@dataclass
class _Node:
    run: tuple[int, ...]
    ends: list[int] = field(default_factory=list)  # prompts that end here
    children: list[_Node] = field(default_factory=list)

    @property
    def prompts(self) -> list[int]:
        return self.ends + [i for child in self.children for i in child.prompts]


def _tree(prompts: Sequence[Sequence[int]], of: list[int], depth: int) -> list[_Node]:
    by_token: dict[int, list[int]] = {}
    for i in of:
        if len(prompts[i]) > depth:
            by_token.setdefault(prompts[i][depth], []).append(i)
    out = []
    for members in by_token.values():
        first, end = prompts[members[0]], depth + 1
        while all(len(prompts[i]) > end for i in members) and len({prompts[i][end] for i in members}) == 1:
            end += 1
        alone = len(members) == 1
        end = len(first) if alone else end
        node = _Node(tuple(first[depth:end]), [i for i in members if len(prompts[i]) == end])
        node.children = [] if alone else _tree(prompts, members, end)
        out.append(node)
    return out


def _collapse(node: _Node) -> list[_Node]:
    """The node and those that left it for a prefix of their own."""
    stays, leaves = [], []
    for below in [n for child in node.children for n in _collapse(child)]:
        if (len(below.prompts) - 1) * len(below.run) > len(node.run):
            leaves.append(_Node(node.run + below.run, below.ends, below.children))
        else:
            stays.append(below)
    node.children = stays
    if len(stays) == 1 and not node.ends:
        node = _Node(node.run + stays[0].run, stays[0].ends, stays[0].children)
    return [node, *leaves] if node.prompts else leaves


def prefix_groups(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Groups over all prompts, each in one; a prompt that shares nothing is a group of its own."""
    nodes = [n for top in _tree(prompts, list(range(len(prompts))), 0) for n in _collapse(top)]
    groups = [Group(n.run if len(n.prompts) > 1 else (), tuple(sorted(n.prompts))) for n in nodes]
    return groups + [Group((), (i,)) for i, prompt in enumerate(prompts) if not len(prompt)]


def tokens_to_read(prompts: Sequence[Sequence[int]], groups: Sequence[Group]) -> int:
    """Tokens that are read when each group's shared part is read once."""
    return sum(len(g.shared) + sum(len(prompts[i]) - len(g.shared) for i in g.members) for g in groups)


def open_together(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[EngineSession]:
    """A session per prompt of token ids, in their order; steps or waits until what they share is read, once."""
    out: dict[int, EngineSession] = {}
    for group in prefix_groups(prompts):
        trunk = engine.open()
        trunk.append(list(group.shared))
        trunk.drained()
        for i in group.members:
            out[i] = trunk.fork()
            out[i].append(list(prompts[i][len(group.shared) :]))
        trunk.close()
    return [out[i] for i in range(len(prompts))]
