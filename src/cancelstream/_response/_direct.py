"""Reading a pydantic-ai stream without its own wrapper around each pull.

pydantic-ai's model classes read their SDK's stream through a wrapper that enters a cancel scope and takes a lock for
every chunk, so that closing can interrupt a pull and wait for it. Here both are done already, around the whole stream
(`_peekable`), at a fraction of the cost: a run of ours takes less time for a chunk than pydantic-ai's own.

What is replaced is private to pydantic-ai. Where it does not look as expected, nothing is done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from pydantic_ai import _utils
from pydantic_ai.models import StreamedResponse

__all__ = ("read_directly",)

_Wrapper: Any = getattr(_utils, "PeekableAsyncStream", object)
_EMPTY: Any = getattr(_utils, "UNSET", None)
_NEEDED: Final = ("_source_iter", "_buffer", "_exhausted")


class _Direct(_Wrapper):  # type: ignore[misc]
    """pydantic-ai's wrapper, which pulls without a scope and a lock once its iteration has begun."""

    _source_iter: AsyncIterator[Any] | None
    _buffer: Any
    _exhausted: bool

    async def __anext__(self) -> Any:
        if self._exhausted or self._buffer is not _EMPTY or self._source_iter is None:
            return await _Wrapper.__anext__(self)
        try:
            return await self._source_iter.__anext__()
        except StopAsyncIteration:
            self._exhausted = True
            raise


def read_directly(inner: StreamedResponse) -> None:
    """Have an open stream, which nobody iterates yet, pull its chunks directly, if it is of a kind that can."""
    wrapper: Any = getattr(inner, "_response", None)
    if type(wrapper) is _Wrapper and all(hasattr(wrapper, name) for name in _NEEDED):
        wrapper.__class__ = _Direct
