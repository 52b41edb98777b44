"""The sink meter: where the heads of a model look, measured on text and on a copying probe.

    found = inspect(model, token_ids)       an Inspection: sinks, locality and retrieval of every layer and head

The probabilities are computed in blocks of queries and summed at once; no attention matrix is kept or returned.
"""

from penstock.models.inspect.dense import DenseStep, Rule, Watch
from penstock.models.inspect.heads import Head, LayerHeads, old_mass
from penstock.models.inspect.measure import Inspection, Settings, inspect
from penstock.models.inspect.watches import CopyWatch, MassWatch, MeanWatch, SinkWatch

__all__ = [
    "CopyWatch",
    "DenseStep",
    "Head",
    "Inspection",
    "LayerHeads",
    "MassWatch",
    "MeanWatch",
    "Rule",
    "Settings",
    "SinkWatch",
    "Watch",
    "inspect",
    "old_mass",
]
