"""Find a live stream by its id and its owner, and stop it.

A stream is known by one key, a digest of its owner and its id together. So a stop with the wrong owner finds
nothing, exactly as a stop with an unknown id does: there is no ownership check that could be forgotten, and no
answer that tells the two apart. The digest has one size whatever a stranger sends, and it is all that ever leaves
the process: neither ids nor owners do.

A stop may come before its stream (the button was quick, a worker was still starting, Redis was away). It is
remembered for `ttl` seconds and given to the stream when that registers. A flood of made-up ids costs bounded
memory: each owner has a share of its own, so one owner's flood pushes out only what that owner asked for.

Known limits: an id belongs to one stream at a time, and `MemoryStopRegistry` knows only its own process. It is made
for one event loop. A cancel callable is called in the loop that asks for the stop, so one that is registered for
another loop's stream must be safe from there (cancelstream's `cancel` and `CancellationToken.cancel` are, `task.cancel`
is not).
"""

from ._registry import (
    MemoryStopRegistry,
    Registration,
    StopOutcome,
    StopRegistry,
    checked_seconds,
    keys,
)
from ._stopper import Stopper

__all__ = ("MemoryStopRegistry", "Registration", "StopOutcome", "StopRegistry", "Stopper", "checked_seconds", "keys")
