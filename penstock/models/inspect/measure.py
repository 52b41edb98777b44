"""Read a text three ways and sum up: short prompts for sinks, long samples for locality, a copying probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.errors import InputError, UsageError
from penstock.memory import Geometry
from penstock.models.attach import Attached
from penstock.models.inspect.dense import DenseStep, Watch
from penstock.models.inspect.heads import Head, LayerHeads, kind_of, old_mass
from penstock.models.inspect.watches import CopyWatch, MassWatch, MeanWatch, SinkWatch

_BATCH = 2048  # tokens of one forward pass, one sample at least
Progress = Callable[[int, int], None]  # tokens read, tokens in all


@dataclass(frozen=True)
class Settings:
    """Sizes in tokens; those of the sink metric are the paper's (arXiv:2410.10781)."""

    tokens: int = 8192  # of the text, read once in long samples
    length: int = 512  # of a long sample at most; the model's context may be shorter
    sinks: int = 4  # how many first tokens count as first
    window: int = 64  # how many newest tokens count as new
    prompts: int = 100  # short prompts for the sink metric, spread over the text
    prompt: int = 64  # length of a short prompt
    epsilon: float = 0.3  # importance above which a key is a sink
    segment: int = 128  # of random tokens that come twice; less in a short context
    copies: int = 8  # samples of the copying probe
    seed: int = 0  # of the random tokens

    def __post_init__(self) -> None:
        for name in ("tokens", "length", "sinks", "window", "prompts", "copies"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} cannot be {getattr(self, name)}: give a whole number from 1 on.")
        if self.prompt < 8 or self.segment < 8:
            raise UsageError(f"prompts of {self.prompt} and segments of {self.segment} are too short: give 8 or more.")
        if not 0.0 < self.epsilon < 1.0:
            raise UsageError(f"epsilon cannot be {self.epsilon}: give a share between 0 and 1, such as 0.3.")


@dataclass(frozen=True)
class Inspection:
    """What the heads of a model do; `settings` are those that were used, cut to the text and the model's context."""

    layers: tuple[LayerHeads, ...]
    sink_rate: tuple[float, ...]  # by position: share of (sample, layer, head) that sinks there
    sinks_needed: int  # first tokens that hold the sinks of 95 % of the heads that have one
    settings: Settings

    def document(self) -> dict[str, Any]:
        """Everything as JSON values, heads listed per layer; `gates` can be given to methods that split heads."""
        layers = [
            {
                "index": layer.index,
                "window": layer.window,
                "heads": [{**dataclasses.asdict(head), "far": head.far} for head in layer.heads],
                "old_mass": list(layer.old_mass),
                "copy": list(layer.copy),
            }
            for layer in self.layers
        ]
        return {
            "settings": dataclasses.asdict(self.settings),
            "sink_rate": list(self.sink_rate),
            "sinks_needed": self.sinks_needed,
            "gates": {
                "old_mass": [list(layer.old_mass) for layer in self.layers],
                "copy": [list(layer.copy) for layer in self.layers],
                "local": [list(layer.local) for layer in self.layers],
            },
            "layers": layers,
        }


@torch.no_grad()
def inspect(
    attached: Attached,
    tokens: Sequence[int],
    prefix: Sequence[int] = (),
    settings: Settings | None = None,
    *,
    special: Collection[int] = (),
    context: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Measure every head of an attached model on a text.

    `tokens` are the text, without what the tokenizer puts before one: that is `prefix`, which begins every sample.
    `special` tokens are left out of the copying probe, `context` is the length that the model was trained on.
    Raises InputError for a text that is too short, UsageError for a window that does not fit into a sample.
    """
    geometry = attached.geometry
    settings = _fitted(settings or Settings(), geometry, len(tokens) + len(prefix), len(prefix), context)
    text = _spread(tokens, prefix, settings.length, max(1, settings.tokens // settings.length))
    short = _spread(tokens, prefix, settings.prompt, settings.prompts)
    twice = _twice(attached.vocabulary, prefix, settings, special)
    sinks, mass = SinkWatch(settings.prompt, settings.epsilon), MassWatch(settings.sinks, settings.window)
    states, copies = MeanWatch(settings.sinks), CopyWatch(len(prefix), settings.segment)
    runs: list[tuple[Tensor, tuple[Watch, ...]]] = [(short, (sinks,)), (text, (mass, states)), (twice, (copies,))]
    total, done, step = sum(rows.numel() for rows, _ in runs), 0, None
    for rows, watches in runs:
        for batch in rows.split(max(1, _BATCH // rows.shape[1])):
            step = _read(attached, batch, watches)
            done += batch.numel()
            if progress is not None:
                progress(done, total)
    assert step is not None
    layers = []
    for layer in geometry.layers:
        index, groups = layer.index, layer.query_heads // layer.kv_heads
        importance, rate, copy = sinks.importance(index)[:, 0], sinks.rate(index)[:, 0], copies.mean(index)
        shares = {name: mass.mean(index, name) for name in ("first", "local", "learned", "distance")}
        heads = []
        for h in range(layer.query_heads):
            at = {name: float(share[h]) for name, share in shares.items()}
            kind = kind_of(float(copy[h]), float(importance[h]), at["local"], settings.epsilon)
            heads.append(
                Head(
                    h, h // groups, float(importance[h]), float(rate[h]), **at, copy=float(copy[h]), kind=kind
                )
            )  # fmt: skip
        old = old_mass(states.query(index), states.key(index), layer, step.rules[index])
        best = copy.view(layer.kv_heads, groups).amax(1)
        layers.append(LayerHeads(index, layer.window, tuple(heads), tuple(old.tolist()), tuple(best.tolist())))
    rates = torch.cat([sinks.rate(layer.index) for layer in geometry.layers]).mean(0)
    return Inspection(tuple(layers), tuple(rates.tolist()), sinks.needed(), settings)


def _read(attached: Attached, rows: Tensor, watches: Sequence[Watch]) -> DenseStep:
    """One forward pass over samples [S, L]."""
    count, length = rows.shape
    step = DenseStep(attached.geometry, length, watches)
    where = torch.arange(length).repeat(count).to(attached.device) if attached.geometry.is_absolute else None
    attached.run(rows.flatten().to(attached.device), step, where, "none")
    return step


def _fitted(settings: Settings, geometry: Geometry, available: int, prefix: int, context: int | None) -> Settings:
    """The settings cut to the text and to the positions that the model knows."""
    limits = [limit for limit in (geometry.max_positions, geometry.reach, context) if limit]
    longest = min([settings.length, *limits])
    length = min(longest, available)
    if length < 16:
        raise InputError(f"a text of {available} tokens shows nothing of the heads: give a longer one.")
    if settings.sinks + settings.window >= length:
        raise UsageError(
            f"{settings.sinks} first and {settings.window} newest tokens leave nothing of samples of {length} tokens: "
            "give a smaller window, or a longer text if it is that which is short."
        )
    return dataclasses.replace(
        settings,
        tokens=max(length, min(settings.tokens, available)),
        length=length,
        prompt=min(settings.prompt, length),
        segment=max(2, min(settings.segment, (longest - prefix) // 2)),
    )


def _spread(tokens: Sequence[int], prefix: Sequence[int], length: int, count: int) -> Tensor:
    """[count, length]: the prefix and a piece of the text, pieces spread evenly; each piece at most once."""
    size = length - len(prefix)
    last = len(tokens) - size
    count = min(count, last + 1)
    starts = [round(i * last / max(1, count - 1)) for i in range(count)]
    return torch.tensor([[*prefix, *tokens[start : start + size]] for start in starts])


def _twice(vocabulary: int, prefix: Sequence[int], settings: Settings, special: Collection[int]) -> Tensor:
    """[copies, P + 2 * segment]: random tokens, each once in a segment if there are enough, and the same again."""
    generator = torch.Generator().manual_seed(settings.seed)
    hidden = set(special)
    ordinary = torch.tensor([token for token in range(vocabulary) if token not in hidden])
    rows = []
    for _ in range(settings.copies):
        order = torch.randperm(len(ordinary), generator=generator)
        segment = ordinary[order.repeat(1 + settings.segment // len(order))[: settings.segment]]
        rows.append(torch.cat([torch.tensor(list(prefix), dtype=torch.int64), segment, segment]))
    return torch.stack(rows)
