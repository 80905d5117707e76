"""Counts, bounds, where they came from, and what they cost.

Read `_meter` first (one response, while it streams), then `_record` (what is known of it), `_objects` and `_run_usage`
(what users see). Counting itself is the room above. Nothing in this room awaits or touches a network.
"""

from .._counting import Api, Count, Source
from ._boundary import attempt
from ._cost import CostRange
from ._meter import Meter, prepare
from ._objects import ResponseUsage
from ._record import Provenance
from ._reported import Reported
from ._run_usage import StreamUsage, combine, usage_to_json

__all__ = (
    "Api",
    "CostRange",
    "Count",
    "Meter",
    "Provenance",
    "Reported",
    "ResponseUsage",
    "Source",
    "StreamUsage",
    "attempt",
    "combine",
    "prepare",
    "usage_to_json",
)
