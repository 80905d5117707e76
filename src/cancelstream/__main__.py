"""The command `cancelstream`: `demo`, `serve` and `usage`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ("main",)

INTERRUPTED: Final = 130
"""The exit status of a program that Ctrl-C ended, as shells have it."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cancelstream", description="Stop a streaming LLM response, and see exactly what was stopped."
    )
    parser.add_argument("--version", action="version", version=f"cancelstream {version('cancelstream')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="stream an answer, stop it, and show what was stopped")
    demo.add_argument(
        "--after",
        type=_positive,
        default=15,
        metavar="N",
        help="stop after N pieces of text; Ctrl-C stops earlier (default: 15)",
    )
    _add_model(demo)

    serve = commands.add_parser("serve", help="a chat page with a Send and a Stop button")
    _add_model(serve)
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="the port to listen on (default: 8000)")
    serve.add_argument("--redis", metavar="URL", help="stop across workers and machines through this Redis")
    serve.add_argument("--workers", type=_positive, default=1, metavar="N", help="worker processes; more need --redis")

    usage = commands.add_parser("usage", help="the tokens and the cost of recorded messages")
    usage.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="messages as JSON, as `all_messages_json()` gives them; - for the standard input",
    )
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="NAME",
        help="a real model: `provider:model` as pydantic-ai has it, or the name alone for OpenAI and for --base-url "
        "(default: a scripted server on this machine)",
    )
    command.add_argument("--base-url", metavar="URL", help="where an OpenAI-compatible server of that model listens")


def _positive(text: str) -> int:
    return _number(text, 1, None)


def _port(text: str) -> int:
    return _number(text, 1, 65535)


def _number(text: str, low: int, high: int | None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        wanted = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {wanted}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: The command line without the program's name, by default this process's own.
    """
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="replace")  # a terminal may know fewer characters than a model
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has enough. Python flushes once more as it exits, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command != "usage" and given.base_url and not given.model:
        parser.error("--base-url needs --model NAME: the server has to be told which model is meant")
    match given.command:
        case "demo":
            from ._demo.stop import main as demo

            return demo(after=given.after, model=given.model, base_url=given.base_url)
        case "serve":
            if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
                parser.error(f"serve needs {' and '.join(missing)}: pip install 'cancelstream[serve]'")
            if given.workers > 1 and not given.redis:
                parser.error("--workers N needs --redis URL: without it a stop reaches only the worker it came to")
            from ._demo.serve import main as serve

            return serve(
                host=given.host,
                port=given.port,
                model=given.model,
                base_url=given.base_url,
                redis=given.redis,
                workers=given.workers,
            )
        case _:
            from ._demo.usage_table import print_usage

            return print_usage(given.file)


if __name__ == "__main__":
    sys.exit(main())
