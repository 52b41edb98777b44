"""What is summed while a model reads: importance of the first keys, shares of mass, the copying probe, mean states.

A watch sees any number of batches of samples; its results are per layer, [Hq] or [Hq, positions], float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.models.inspect.dense import Watch


class _Sums:
    """Named sums of float64 tensors per layer, and how many terms each has."""

    def __init__(self) -> None:
        self.totals: dict[tuple[int, str], Tensor] = {}
        self.counts: dict[tuple[int, str], int] = {}

    def add(self, layer: int, name: str, total: Tensor, count: int) -> None:
        at = (layer, name)
        total = total.double().cpu()
        self.totals[at] = self.totals[at] + total if at in self.totals else total
        self.counts[at] = self.counts.get(at, 0) + count

    def mean(self, layer: int, name: str) -> Tensor:
        return self.totals[layer, name] / self.counts[layer, name]


class SinkWatch(Watch):
    """Sinks by the threshold metric of arXiv:2410.10781, over samples of `length` tokens.

    The importance of a key is the mean attention that it gets from the queries at and after it.  A head sinks at a
    position in a sample if the importance there is above `epsilon`.  Only the first quarter of the positions counts:
    late keys have few queries after them, and one that looks at itself would pass for a sink.
    """

    def __init__(self, length: int, epsilon: float = 0.3) -> None:
        self.length, self.epsilon = length, epsilon
        self.positions = max(1, length // 4)
        self._open: dict[int, Tensor] = {}  # layer -> attention received so far [S, Hq, K]
        self._sums = _Sums()
        self._where: dict[int, Tensor] = {}  # layer -> sinking (sample, head) pairs by first position  [K]

    def weights(self, layer: int, first: int, weights: Tensor, learned: Tensor | None) -> None:
        keys = min(self.positions, weights.shape[-1])
        if first == 0:
            self._open[layer] = weights.new_zeros((*weights.shape[:2], self.positions), dtype=torch.float64)
        self._open[layer][..., :keys] += weights[..., :keys].sum(2)
        if first + weights.shape[2] == self.length:
            self._close(layer, self._open.pop(layer).cpu())

    def _close(self, layer: int, received: Tensor) -> None:
        importance = received / (self.length - torch.arange(self.positions))  # [S, Hq, K]
        sinks = importance > self.epsilon
        self._sums.add(layer, "importance", importance.sum(0), len(received))
        self._sums.add(layer, "rate", sinks.sum(0), len(received))
        earliest = sinks.int().argmax(-1)[sinks.any(-1)]
        found = torch.bincount(earliest, minlength=self.positions)
        self._where[layer] = self._where.get(layer, torch.zeros_like(found)) + found

    def importance(self, layer: int) -> Tensor:
        """[Hq, K]: importance of the first keys, mean over the samples."""
        return self._sums.mean(layer, "importance")

    def rate(self, layer: int) -> Tensor:
        """[Hq, K]: share of the samples in which a head sinks at a position."""
        return self._sums.mean(layer, "rate")

    def needed(self, share: float = 0.95) -> int:
        """The fewest first tokens that hold a sink of `share` of the heads and samples that have one; 0 if none has."""
        found = torch.stack(list(self._where.values())).sum(0)
        if not int(found.sum()):
            return 0
        return int((found.cumsum(0) < share * found.sum()).sum()) + 1


class MassWatch(Watch):
    """Where attention goes: the first `sinks` tokens, the newest `window` ones (the query's own included), the rest.

    Only queries whose first tokens have left the window count, so that the shares do not overlap.  In layers with a
    window of their own the first tokens soon have no share.
    """

    def __init__(self, sinks: int, window: int) -> None:
        self.sinks, self.window = sinks, window
        self._sums = _Sums()

    def weights(self, layer: int, first: int, weights: Tensor, learned: Tensor | None) -> None:
        skip = max(0, self.sinks + self.window - 1 - first)
        weights = weights[:, :, skip:]
        samples, _, count, keys = weights.shape
        if not count:
            return
        query = torch.arange(first + skip, first + skip + count, device=weights.device)
        distance = query[:, None] - torch.arange(keys, device=weights.device)  # [C, T], negative in the future
        shares = {
            "first": weights[..., : self.sinks].sum(-1),
            "local": (weights * (distance < self.window)).sum(-1),
            "distance": (weights * distance.clamp_min(0)).sum(-1),
            "learned": torch.zeros_like(weights[..., 0]) if learned is None else learned[:, :, skip:],
        }
        for name, share in shares.items():  # [S, Hq, C]
            self._sums.add(layer, name, share.sum((0, 2)), samples * count)

    def mean(self, layer: int, name: str) -> Tensor:
        """[Hq]: `first`, `local`, `learned` (shares of one), `distance` (tokens; a learned sink adds none)."""
        return self._sums.mean(layer, name)


class CopyWatch(Watch):
    """Retrieval in a text that comes twice: the mass on the token after the previous occurrence of the query's token.

    start          start + segment
      |a b c d ... z|a b c d ... z|          the query at the second b looks for the first c
    """

    def __init__(self, start: int, segment: int) -> None:
        self.start, self.segment = start, segment
        self._sums = _Sums()

    def weights(self, layer: int, first: int, weights: Tensor, learned: Tensor | None) -> None:
        low, high = self.start + self.segment, self.start + 2 * self.segment - 1  # the last one's key is a new text
        low, high = max(first, low), min(first + weights.shape[2], high)
        if low < high:
            query = torch.arange(low, high, device=weights.device)
            found = weights[:, :, query - first, query - self.segment + 1]  # [S, Hq, C]
            self._sums.add(layer, "copy", found.sum((0, 2)), found.shape[0] * found.shape[2])

    def mean(self, layer: int) -> Tensor:
        """[Hq]."""
        return self._sums.mean(layer, "copy")


class MeanWatch(Watch):
    """Mean raw query and key per head, without the first `skip` tokens of a sample (sinks have keys of their own)."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self._sums = _Sums()

    def states(self, layer: int, query: Tensor, key: Tensor) -> None:
        for name, x in (("query", query), ("key", key)):
            kept = x[:, :, self.skip :]
            self._sums.add(layer, name, kept.sum((0, 2), dtype=torch.float64), kept.shape[0] * kept.shape[2])

    def query(self, layer: int) -> Tensor:
        """[Hq, D]."""
        return self._sums.mean(layer, "query")

    def key(self, layer: int) -> Tensor:
        """[Hkv, D]."""
        return self._sums.mean(layer, "key")
