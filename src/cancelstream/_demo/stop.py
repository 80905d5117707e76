"""`cancelstream demo`: stream an answer, stop it, and show what was stopped.

By default the provider is a scripted server on this machine, which says when it saw the client go; the agent, the
openai client and the connection are real. With a real provider the same code runs, and what only a server can see
reads `not observable`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, contextmanager, suppress
from decimal import Decimal

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

from .. import CancellableRun, Count, IncompleteHistoryError, is_incomplete, run_stream, salvage
from ..testing import Answer, ScriptedServer, Text
from .provider import CannotStart, explained, provider_model

__all__ = ("main",)

PROMPT = "Tell me about rivers."

ANSWERS = (
    "A river begins as water that has nowhere else to go. Rain falls on a hill, gathers in a fold of the ground, and "
    "starts to move. Where two folds meet there is a stream, where streams meet there is a river, and on its way to "
    "the sea it wears down whatever stands in its path, a grain at a time, for as long as it rains.",
    "Going on from where I stopped: the water finds the lowest way, and the lowest way becomes a valley.",
)


def main(*, after: int, model: str | None, base_url: str | None) -> int:
    """Run the demo.

    Args:
        after: Stop after this many pieces of text; Ctrl-C stops earlier.
        model: A real model, by name; `None` for the scripted server.
        base_url: Where an OpenAI-compatible server of that model listens.

    Returns:
        The exit status: 0, or 2 if the provider cannot be used.
    """
    try:
        asyncio.run(_demo(after, model, base_url))
    except CannotStart as error:
        print(f"cancelstream: {error}", file=sys.stderr)
        return 2
    return 0


async def _demo(after: int, name: str | None, base_url: str | None) -> None:
    async with AsyncExitStack() as stack:
        server: ScriptedServer | None = None
        if name is None:
            server = stack.enter_context(ScriptedServer(*(Answer(Text.words(answer, gap=0.03)) for answer in ANSWERS)))
            base_url = server.base_url
        model = provider_model(name, base_url)
        if isinstance(model, OpenAIChatModel):
            stack.push_async_callback(model.client.close)
        await stack.enter_async_context(model)
        agent = Agent(model)
        with explained():
            result, called = await _stream_and_stop(agent, after)
            _report(result, await _seen(server, called))
            await _use_as_history(agent, result)


async def _stream_and_stop(agent: Agent[None, str], after: int) -> tuple[CancellableRun[str], float]:
    """Stream to the terminal until `after` pieces have come or Ctrl-C is pressed; say when it was cancelled."""
    called = 0.0
    run = run_stream(agent, PROMPT)

    def stop(reason: str) -> None:
        nonlocal called
        called = called or time.monotonic()
        run.cancel(reason)

    print(f"> {PROMPT}\n")
    with _on_ctrl_c(stop):
        await _print(run, lambda pieces: stop("enough") if pieces == after else None)
    return run, called


@contextmanager
def _on_ctrl_c(stop: Callable[[str], object]) -> Generator[None]:
    """Have Ctrl-C call `stop` meanwhile, instead of ending the program."""
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):  # Windows: there Ctrl-C ends the program
        loop.add_signal_handler(signal.SIGINT, stop, "Ctrl-C")
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)


async def _print(run: CancellableRun[str], watch: Callable[[int], None]) -> None:
    """Print the answer as it comes; `watch` is told how many pieces have come."""
    async with run as result:
        pieces = 0
        async for piece in result.stream_text(delta=True, debounce_by=None):
            print(piece, end="", flush=True)
            pieces += 1
            watch(pieces)
    print(f" {_mark()}\n" if run.cancelled else "\n")


def _mark() -> str:
    """The text that stands where an answer was cut."""
    mark = "\N{BLACK SQUARE}"
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "[cut]"
    return mark


async def _seen(server: ScriptedServer | None, called: float) -> tuple[str, str]:
    """After how long the server saw the client go, and how many chunks it generated after the call."""
    if server is None:
        return "not observable", "not observable"
    if not server.records:
        return "never: it was not asked", "0"
    record = server.records[0]
    if not called or record.ended_by == "complete":
        return "never: the answer had ended", "0"
    milliseconds = (await record.until_disconnected(5) - called) * 1000
    return f"{milliseconds:.1f} ms", str(record.chunks_after(called))


def _report(result: CancellableRun[str], seen: tuple[str, str]) -> None:
    usage, response = result.usage, result.response
    text = response.text or ""
    rows = [
        ("stopped", result.cancel_reason if result.cancelled else "no: the answer had ended"),
        ("text kept", f"{len(text)} characters, {len(text.split())} words"),
        ("state", response.state),
        ("input tokens", _count(usage.input)),
        ("output tokens", _count(usage.output)),
        ("usage", usage.provenance),
        ("cost", _cost(result)),
        ("server saw the disconnect after", seen[0]),
        ("chunks it generated after the call", seen[1]),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _count(count: Count) -> str:
    value = "?" if count.value is None else str(count.value)
    high = "unknown" if count.high is None else str(count.high)
    return f"{value}  ({count.source}; {count.low} to {high})"


def _cost(result: CancellableRun[str]) -> str:
    cost = result.usage.cost_range
    high = "unknown" if cost.high is None else _dollars(cost.high)
    value = "?" if cost.value is None else _dollars(cost.value)
    return f"{value}  ({_dollars(cost.low)} to {high})" + (f": {cost.reason}" if cost.reason else "")


def _dollars(amount: Decimal) -> str:
    return f"${amount:.6f}"


async def _use_as_history(agent: Agent[None, str], result: CancellableRun[str]) -> None:
    """Show that the cut answer is refused as history, and that `salvage()` makes it usable."""
    messages = result.all_messages()
    if not any(map(is_incomplete, messages)):
        return
    print("\n> Go on.  (with the cut answer as history)")
    try:
        async with run_stream(agent, "Go on.", message_history=messages):
            raise AssertionError("a cut answer was accepted as history")
    except IncompleteHistoryError as error:
        print(f"IncompleteHistoryError: {error}")
    print("\n> Go on.  (with salvage(messages) as history)\n")
    again = run_stream(agent, "Go on.", message_history=salvage(messages))
    with _on_ctrl_c(again.cancel):
        await _print(again, lambda _: None)
