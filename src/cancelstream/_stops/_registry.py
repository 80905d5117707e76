"""The registry: who is live, under which key, and what becomes of a stop."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Literal, Protocol, Self

from .._errors import named
from .._state import checked_reason
from ._early import EarlyStops
from ._stopper import Stopper

__all__ = ("MemoryStopRegistry", "Registration", "StopOutcome", "StopRegistry", "checked_seconds", "keys")

StopOutcome = Literal["stopped", "requested", "unavailable"]
"""The answer of `stop()`. None of the three tells whether such a stream exists.

`'stopped'`: a live stream of this process was told to stop. `'requested'`: the stop was taken, and the process that
has the stream, or registers it within `ttl`, will stop it. `'unavailable'`: it is not known whether the stop was taken;
asking again is safe.
"""


class StopRegistry(Protocol):
    """Finds live streams by id and owner; `MemoryStopRegistry` for one process, `RedisStopRegistry` for many."""

    def register(self, stop_id: str | None, cancel: Callable[..., object], *, owner: str) -> Registration:
        """Make a stream known. Does no I/O and never waits; see `MemoryStopRegistry.register`."""
        ...

    async def stop(self, stop_id: str, *, owner: str, reason: str = "user") -> StopOutcome:
        """Stop the stream of this id if `owner` owns it; see `MemoryStopRegistry.stop`."""
        ...

    def drain(self, reason: str = "server_shutdown") -> int:
        """Stop all streams, and each one that still registers; see `MemoryStopRegistry.drain`."""
        ...

    async def __aenter__(self) -> Self:
        """Start what the registry needs to hear of stops."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None, /
    ) -> None:
        """End it."""
        ...


class Registration:
    """One stream's entry in a registry. `close()` it, or leave it as a context, when the stream has ended.

    Attributes:
        stop_id: The id the stream is stopped by; 144 random bits where the library made it.
    """

    __slots__ = ("_forget", "_stopper", "stop_id")

    def __init__(self, stop_id: str, stopper: Stopper, forget: Callable[[Registration], object]) -> None:
        self.stop_id = stop_id
        self._stopper = stopper
        self._forget = forget

    def close(self) -> None:
        """Forget the stream; may be called again."""
        self._forget(self)

    def stop(self, reason: str) -> bool:
        """Stop the stream, as `Stopper.stop`."""
        return self._stopper.stop(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemoryStopRegistry:
    """Stops streams of this process, by id and owner.

    Args:
        ttl: How long a stop that came before its stream is remembered, in seconds.
    """

    def __init__(self, *, ttl: float = 60.0) -> None:
        self._ttl = checked_seconds("ttl", ttl)
        self._live: dict[bytes, Registration] = {}
        self._early = EarlyStops(ttl)
        self._draining: str | None = None

    def register(self, stop_id: str | None, cancel: Callable[..., object], *, owner: str) -> Registration:
        """Make a stream known, so that `stop()` finds it. Does no I/O, never waits.

        If its stop came first, or the registry is draining, `cancel` is called before this returns.

        Args:
            stop_id: The id to stop it by, never one that is used again (not a conversation's); `None` makes one of
                144 random bits, which is then in the returned `stop_id`.
            cancel: Called at most once, with `reason=` if it takes an argument of that name and without
                arguments otherwise: `run.cancel`, `CancellationToken.cancel`, `task.cancel`. A coroutine that it
                returns is run in a task.
            owner: Who may stop it: the authenticated user's id, not empty.

        Raises:
            TypeError: `cancel` cannot be called that way, or `stop_id` or `owner` is not a string.
            ValueError: `owner` is empty, or this owner has a live stream of this id.
        """
        if stop_id is None:
            stop_id = secrets.token_urlsafe(18)
        owner_key, key = keys(stop_id, owner)
        if key in self._live:
            raise ValueError(f"stop_id {named(stop_id)} is in use by a live stream: each stream needs an id of its own")
        registration = Registration(stop_id, Stopper(cancel), partial(self._forget, key))
        self._live[key] = registration
        reason = self._early.take(owner_key, key) or self._draining
        if reason is not None:
            registration.stop(reason)
        return registration

    async def stop(self, stop_id: str, *, owner: str, reason: str = "user") -> StopOutcome:
        """Stop the stream of this id if it is `owner`'s; if it is not known yet, stop it when it registers.

        Never raises for what a stranger sent: an unknown id, an ended stream and another owner's stream all
        answer `'requested'`.

        Args:
            stop_id: The id of the stream.
            owner: Who asks: the authenticated user's id, from the session and never from the request's body.
            reason: What the stream's `cancel_reason` will say, at most 200 characters.

        Returns:
            A `StopOutcome`: here `'stopped'` or `'requested'`.

        Raises:
            TypeError: `owner` is not a string.
            ValueError: `owner` is empty or `reason` is too long.
        """
        owner_key, key = keys(stop_id, owner)
        return self._deliver(owner_key, key, checked_reason(reason))

    def drain(self, reason: str = "server_shutdown") -> int:
        """Stop all streams that live here now, and each one that still registers, until the registry is entered again.

        `lifespan()` calls this when the server is told to end.

        Returns:
            How many live streams there were.
        """
        self._draining = reason = checked_reason(reason)
        live = list(self._live.values())
        for registration in live:
            registration.stop(reason)
        return len(live)

    async def __aenter__(self) -> Self:
        self._draining = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None, /
    ) -> None:
        return None

    def _forget(self, key: bytes, registration: Registration) -> None:
        # One that is closed twice must not take away the next stream of the same id.
        if self._live.get(key) is registration:
            del self._live[key]

    def _deliver(self, owner_key: bytes, key: bytes, reason: str) -> StopOutcome:
        """Stop the stream if it lives here, otherwise remember the stop."""
        registration = self._live.get(key)
        if registration is None:
            self._early.add(owner_key, key, reason)
            return "requested"
        return "stopped" if registration.stop(reason) else "requested"


def checked_seconds(name: str, value: float) -> float:
    """The time that was given for this argument, or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name} is a time in seconds, not {named(value)}")
    if not value > 0:  # `nan` is not, either
        raise ValueError(f"{name} is a time in seconds above 0, not {named(value)}")
    return value


def keys(stop_id: str, owner: str) -> tuple[bytes, bytes]:
    """The digests of the owner alone, and of the owner and the id."""
    if not isinstance(owner, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"owner is the authenticated user's id as a string, not {named(owner)}")
    if not isinstance(stop_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"stop_id is the stream's id as a string, not {named(stop_id)}")
    if not owner:
        raise ValueError("owner is empty: a stream that anyone may stop is not supported, pass the user's id")
    owner_key = blake2b(owner.encode(errors="surrogatepass"), digest_size=8).digest()
    # No separator is needed between the two, since the first has one size.
    return owner_key, blake2b(owner_key + stop_id.encode(errors="surrogatepass"), digest_size=16).digest()
