"""Memories for people who call `model.generate`.

    import penstock.cache
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="penstock")
    cache = penstock.cache.StreamCache(model, memory="streaming-llm", budget=4096)
    model.generate(**inputs, past_key_values=cache)

Without `attn_implementation="penstock"` only `dense` and `window` work (models/cache.py says why); families with an
adapter (Falcon, MPT) need none.
"""

from __future__ import annotations

from torch import nn

from penstock.core import Budget
from penstock.memory import Geometry, Placement
from penstock.methods import Method, parse
from penstock.methods.base import entries_for
from penstock.models.cache import Composition, MemoryCache
from penstock.models.support import check_supported


class StreamCache(MemoryCache):
    """A memory as `past_key_values`; `memory` and `budget` are those of `penstock.open`.

    Raises UnknownName, BudgetError, UnsupportedModel or CompositionError where the combination could not be right.
    """

    def __init__(
        self, model: nn.Module, memory: str | Method = "streaming-llm", budget: int | str | Budget | None = 1024
    ) -> None:
        method = parse(memory)
        limit = None if budget is None else Budget.parse(budget)

        def cascades(geometry: Geometry) -> tuple[Placement, ...]:
            entries = entries_for(method, geometry, limit)
            check_supported(geometry, method, entries)
            return method.cascades(geometry, entries)

        super().__init__(model, Composition(method.name, "grows" in method.claims, cascades))
