"""`cancelstream serve`: a chat page with a Send and a Stop button, on a server of this machine.

By default the provider is a scripted server in this process, which all workers ask; with a real model the same page
and the same code run. Each worker process builds the application anew (`application`), from settings that it finds in
its environment.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

import uvicorn
from pydantic_ai import Agent
from starlette.applications import Starlette

from ..testing import Answer, ScriptedServer, Text
from .chat import chat_application
from .provider import CannotStart, explained, provider_model

__all__ = ("application", "main")

SETTINGS: Final = "CANCELSTREAM_SERVE"
"""The environment variable in which the workers find their settings."""

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

ANSWERS: Final = (
    "A river begins as water that has nowhere else to go. Rain falls on a hill, gathers in a fold of the ground, and "
    "starts to move. Where two folds meet there is a stream, where streams meet there is a river, and on its way to "
    "the sea it wears down whatever stands in its path, a grain at a time, for as long as it rains.\n\nMost of this "
    "goes unseen. A river that looks still in summer carries a hill away in a thousand years, and leaves the valley "
    "that everyone takes for granted.",
    "Going on from there: the water finds the lowest way, and the lowest way becomes a valley. Where the ground is "
    "hard the valley is narrow and the river loud; where it is soft the river wanders, cuts through its own bends, "
    "and leaves lakes behind that remember where it was.",
    "That depends on the rock. Granite gives a river its steps and its pools, chalk lets it sink and come up again "
    "miles away, and clay holds it at the surface, brown and slow, between willows.",
)


@dataclass(frozen=True)
class Settings:
    """The settings of a worker."""

    model: str | None
    base_url: str | None
    redis: str | None


def main(*, host: str, port: int, model: str | None, base_url: str | None, redis: str | None, workers: int) -> int:
    """Serve the page until the process is told to end.

    Args:
        host: The address to listen on.
        port: The port to listen on.
        model: A real model, by name; `None` for the scripted server.
        base_url: Where an OpenAI-compatible server of that model listens.
        redis: The Redis through which workers tell each other of stops, and in which conversations are kept.
        workers: How many processes serve.

    Returns:
        The exit status: 0, or 2 if the provider, Redis or the address cannot be used.
    """
    with ExitStack() as stack:
        if model is None:
            answers = (Answer(Text.words(answer, gap=0.05)) for answer in ANSWERS)
            base_url = stack.enter_context(ScriptedServer(*answers, repeat=True)).base_url
        settings = Settings(model, base_url, redis)
        try:
            # Tell a fault here, once, and not in each worker.
            provider_model(model, base_url)
            with explained():
                _check_redis(redis)
            _check_address(host, port)
        except CannotStart as error:
            print(f"cancelstream: {error}", file=sys.stderr)
            return 2
        os.environ[SETTINGS] = json.dumps(asdict(settings))
        print(f"cancelstream: http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends)", flush=True)
        if host not in LOOPBACK:
            print("cancelstream: this page knows no passwords: who can reach it can use the model", file=sys.stderr)
        uvicorn.run(
            "cancelstream._demo.serve:application",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            log_level="warning",
        )
    return 0


def application() -> Starlette:
    """The application of one worker process."""
    settings = Settings(**json.loads(os.environ[SETTINGS]))
    return chat_application(Agent(provider_model(settings.model, settings.base_url)), redis=settings.redis)


def _check_address(host: str, port: int) -> None:
    """Raise if the address cannot be listened on; found out by doing so, for a moment."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        raise CannotStart(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def _check_redis(url: str | None) -> None:
    if url is None:
        return
    try:
        from redis import Redis, RedisError
    except ImportError:
        raise ImportError("--redis needs redis: pip install 'cancelstream[redis]'") from None
    try:
        client = Redis.from_url(url, socket_connect_timeout=2)  # pyright: ignore[reportUnknownMemberType]
    except ValueError:
        # Neither the URL nor redis-py's error, which may quote a part of it: it may hold a password.
        raise ValueError(
            "--redis takes redis://, rediss:// or unix://, as in redis://user:password@host:6379/0"
        ) from None
    with client:
        try:
            client.ping()  # pyright: ignore[reportUnknownMemberType]
        except RedisError as error:
            told: dict[str, Any] = client.connection_pool.connection_kwargs
            where = told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}"
            raise ValueError(f"the Redis at {where} does not answer: {error}") from None
