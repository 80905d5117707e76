"""Counts, bounds, where they came from, and what they cost.

Read `_count` first (what is known of one number), then `_meter` (one response, while it streams) and `_objects` (what
users see). Nothing in this room awaits or touches a network.
"""

from ._cost import CostRange
from ._count import Count, Provenance, Source
from ._meter import Meter, prepare
from ._objects import ResponseUsage, StreamUsage
from ._prompt import Api

__all__ = ("Api", "CostRange", "Count", "Meter", "Provenance", "ResponseUsage", "Source", "StreamUsage", "prepare")
