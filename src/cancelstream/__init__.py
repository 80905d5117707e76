"""Stop a streaming LLM response anywhere, at once, and know exactly what was stopped.

Most users need five names: `run_stream`, `run_stream_events`, `Cancellable`, `salvage`, and in a web app
`cancelstream.starlette.CancellableEventResponse`. The rest is for building on.

A name is imported when it is first used: pytest imports this package at each start, for its plugin, and should not
wait for openai and pydantic-ai. `__init__.pyi` is the one list of names, for type checkers and for this module.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_LIST: Final = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_ROOMS: Final = {name: room for room, name in re.findall(r"^from (\.\w+) import (\w+) as ", _LIST, re.MULTILINE)}

__all__ = tuple(sorted(_ROOMS))  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(room, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
