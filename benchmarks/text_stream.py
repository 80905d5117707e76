"""What reading a text stream costs, in processor time a chunk: cancelstream, what is below it, and its peers.

Every way is measured in a process of its own, in turn with iterating openai's raw stream there; what counts is the
ratio of the two, round by round, so what else the machine does strikes both. The bytes are the same for all, and in
memory, with one wait before each read (`_text_ways.py`); on a socket a read costs more, for every way alike.

1. A read for each event, which is the worst case, and 16 events in a read, as from a provider that is ahead of its
   reader. Chat completions, and text through the Responses API, each beside its own raw stream. Then a short answer,
   where opening and closing are a part of it.
2. Flat: a chunk of 5,000, of 20,000 and of 80,000, `delta=True` and `delta=False`.
3. `--peers`: other libraries, each in an environment of its own, made by uv (or venv) on the fly; one that cannot be
   installed says so in its row. They do more with a stream than to hand out its text: agents, callbacks, traces.

    python benchmarks/text_stream.py [--rounds 9] [--peers] [--environments DIR]

The exit status is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cancelstream

WAYS = Path(__file__).with_name("_text_ways.py")
PACKAGES = Path(cancelstream.__file__).parent.parent

OURS = {
    "bytes": "httpx2: reading the bytes, and nothing else",
    "delta": "from_openai().stream_text(delta=True)",
    "whole": "from_openai().stream_text()",
    "objects": "from_openai().chunks()",
}
PEERS = {
    "pydantic-ai": "pydantic-ai-slim[openai]",
    "openai-agents": "openai-agents",
    "langchain-openai": "langchain-openai",
    "llama-index-llms-openai": "llama-index-llms-openai",
    "litellm": "litellm",
    "strands-agents": "strands-agents[openai]",
}
CHUNKS = 20_000  # so many that what a stream costs by itself does not show
SHORT = 500  # there it does
PEER_CHUNKS = 5_000  # the slowest would take minutes for more
SIZES = (5_000, 20_000, 80_000)
FLAT = 1.2

missed: list[str] = []


class Measured(NamedTuple):
    versions: str
    cost: float  # us a chunk, the median
    raw: float  # openai's raw stream in the same process
    ratio: float  # of the two, the median over the rounds


def run(python: str, name: str, *options: object) -> dict[str, Any]:
    """What the way's own process prints.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    own = {"PYTHONPATH": str(PACKAGES)} if python == sys.executable else {}
    command = [python, str(WAYS), name, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(
    name: str,
    *options: str,
    rounds: int,
    python: str = sys.executable,
    in_a_read: int = 1,
    chunks: int = CHUNKS,
) -> Measured:
    found = run(python, name, *options, "--chunks", chunks, "--in-a-read", in_a_read, "--rounds", rounds)
    way, raw = found["times"][f"{name} {chunks}"], found["times"][f"raw {chunks}"]
    ratio = statistics.median(a / b for a, b in zip(way, raw, strict=True))
    return Measured(found["versions"], statistics.median(way), statistics.median(raw), ratio)


def row(what: str, found: Measured, goal: float | None = None) -> None:
    verdict = "" if goal is None else f"  at most {goal:.2f}: {'ok' if found.ratio <= goal else 'MISSED'}"
    if goal is not None and found.ratio > goal:
        missed.append(f"{what}: {found.ratio:.3f}")
    print(f"    {what:<50} {found.cost:8.1f} {found.raw:8.1f} {found.ratio:8.3f}{verdict}")


def head(what: str) -> None:
    print(f"{what}\n    {'':<50} {'us':>8} {'raw':>8} {'of raw':>8}")


def ours(rounds: int) -> None:
    for in_a_read in (1, 16):
        head(f"{CHUNKS:,} chunks, {in_a_read} in a read")
        goals = {"delta": 0.10, "objects": 1.04}
        found = {name: measure(name, rounds=rounds, in_a_read=in_a_read) for name in OURS}
        for name, what in OURS.items():
            row(what, found[name], goals.get(name))
        above = found["delta"].ratio - found["bytes"].ratio
        answer = measure("delta", "--responses", rounds=rounds, in_a_read=in_a_read)
        row("the same of a Responses stream, beside its raw one", answer)
        print(f"    stream_text(delta=True), less what reading the bytes takes: {above:.3f} of the raw stream")
    head(f"a short answer: {SHORT} chunks, 1 in a read")
    for name, what in OURS.items():
        row(what, measure(name, rounds=rounds * 5, chunks=SHORT))


def flat(rounds: int) -> None:
    print("flat: us a chunk of 5,000, 20,000 and 80,000 chunks, 16 in a read")
    for name in ("delta", "whole"):
        times = run(sys.executable, name, "--chunks", *SIZES, "--in-a-read", 16, "--rounds", max(3, rounds // 3))[
            "times"
        ]
        of = [times[f"{name} {size}"] for size in SIZES]
        growth = statistics.median(a / b for a, b in zip(of[-1], of[0], strict=True))
        costs = "".join(f"{statistics.median(each):8.2f}" for each in of)
        holds = growth <= FLAT
        print(f"    {OURS[name]:<50}{costs}  {growth:.2f} times, at most {FLAT}: {'ok' if holds else 'MISSED'}")
        if not holds:
            missed.append(f"{OURS[name]}: {growth:.2f} times")


def environment(name: str, package: str, folder: Path) -> str:
    """The Python of an environment that has a peer in it.

    Raises:
        subprocess.CalledProcessError: It cannot be installed.
    """
    place = folder / name
    python = place / "bin" / "python"
    uv = shutil.which("uv")
    if uv:
        commands = [
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(place)],
            [uv, "pip", "install", "--quiet", "--python", str(python), package],
        ]
    else:
        commands = [[sys.executable, "-m", "venv", str(place)], [str(python), "-m", "pip", "install", "-q", package]]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True)
    return str(python)


def peers(rounds: int, folder: Path) -> None:
    head(f"peers: {PEER_CHUNKS:,} chunks, 1 in a read; each beside the raw stream of the openai that it runs on")
    row(OURS["delta"], measure("delta", rounds=rounds, chunks=PEER_CHUNKS))
    for name, package in PEERS.items():
        try:
            python = environment(name, package, folder)
            found = measure(name, rounds=max(3, rounds // 2), python=python, chunks=PEER_CHUNKS)
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["?"])[-1]
            print(f"    {name:<50} cannot be installed, or fails: {last}")
        else:
            row(found.versions, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--environments", type=Path, help="keep the peers' environments here")
    arguments = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {arguments.rounds} rounds; us of processor time a chunk, medians")
    ours(arguments.rounds)
    flat(arguments.rounds)
    if arguments.peers:
        with tempfile.TemporaryDirectory() as temporary:
            peers(arguments.rounds, arguments.environments or Path(temporary))
    for miss in missed:
        print(f"MISSED: {miss}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
