"""A scripted provider to test Stop buttons with: a real server on a real socket that records how its client left.

`ScriptedServer` answers over HTTP what a script of plain values says, and notes for each request what it
generated, and when and how the client went away. pytest finds the fixture `scripted_server` by itself.

It imports nothing else of cancelstream, so the two cannot share a mistake.
"""

from ._record import Record
from ._script import Answer, HttpError, Replay, Turn, Usage
from ._server import ScriptedServer, StartServer
from ._steps import (
    Burst,
    Cut,
    ErrorEvent,
    Event,
    Gap,
    Gate,
    Reasoning,
    Silence,
    Text,
    ToolCall,
)

__all__ = (
    "Answer",
    "Burst",
    "Cut",
    "ErrorEvent",
    "Event",
    "Gap",
    "Gate",
    "HttpError",
    "Reasoning",
    "Record",
    "Replay",
    "ScriptedServer",
    "Silence",
    "StartServer",
    "Text",
    "ToolCall",
    "Turn",
    "Usage",
)
