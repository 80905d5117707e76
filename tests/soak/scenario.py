"""What a run does, drawn from its seed: a source, a consumer, and what happens to them at which turn."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

STEPS = {
    "item": 30,  # yield one
    "wait": 20,  # a real wait, for some turns
    "bare": 8,  # some bare yields
    "shielded": 8,  # bare yields that must not be interrupted
    "poll_anyio": 5,  # short waits, each under an anyio timeout
    "poll_asyncio": 5,  # the same under asyncio's
    "child": 4,  # await a task
    "gather": 2,  # await several
    "cancelled_child": 3,  # await a task that somebody else cancels, and go on
    "swallow": 1,  # a wait that swallows one cancellation and waits on
    "stubborn": 1,  # a wait that swallows every cancellation
    "stubborn_child": 1,  # await a task that does
    "spin": 1,  # bare yields for ever
    "error": 2,
    "cancel_inside": 2,  # cancel() from inside the pull
    "close_inside": 1,  # await close() there
    "task_cancel_inside": 1,  # the consumer's task is cancelled by its own source
}
OUTERS = {"none": 40, "task": 25, "timeout": 12, "scope": 13, "group": 10}
CONSUMERS = {
    "with": 35,
    "loop": 15,
    "peek": 12,
    "prefetch": 10,
    "guarded": 10,
    "two": 8,
    "dropped": 6,
    "nested": 5,
    "destroyed": 3,
}
ACTIONS = {"cancel": 60, "task": 20, "scope": 15, "group": 12, "close": 12, "await": 10}
CLOSES = {"plain": 70, "none": 8, "raises": 6, "waits": 8, "stuck": 4, "swallows": 4}


@dataclass(frozen=True)
class Step:
    kind: str
    turns: int


@dataclass(frozen=True)
class Action:
    kind: str
    turn: int
    where: float


@dataclass(frozen=True)
class Scenario:
    seed: int
    kind: str  # of the source: a generator, generators in a chain, an iterator with coroutines, one with awaitables
    steps: tuple[Step, ...]
    lead_in: int  # bare yields of a clean-up before anything is shielded
    release: tuple[Step, ...]  # what giving the connection back takes
    has_response: bool
    close: str
    consumer: str
    pause: int  # turns between two pulls
    outer: str
    timeout: int
    actions: tuple[Action, ...]


def draw(seed: int) -> Scenario:
    random = Random(seed)

    def pick(weights: dict[str, int]) -> str:
        return random.choices(list(weights), list(weights.values()))[0]

    outer = pick(OUTERS)
    steps = tuple(Step(pick(STEPS), random.randint(1, 4)) for _ in range(random.randint(2, 7)))
    release = [Step("bare", random.randint(1, 3)) for _ in range(random.randint(0, 2))]
    if random.random() < 0.2:
        release.insert(random.randint(0, len(release)), Step("wait", random.randint(1, 3)))
    first = random.randint(1, 14)
    actions: list[Action] = []
    # Two or three things a few turns apart: that is where races are.
    for _ in range(random.choice((1, 2, 2, 2, 3))):
        kind = pick(ACTIONS)
        if kind in ("scope", "group") and kind != outer:
            kind = "task" if outer == "task" else "cancel"
        if kind == "task" and outer in ("timeout", "scope", "group"):
            kind = outer if outer != "timeout" else "cancel"
        actions.append(Action(kind, first + random.randint(0, 7), random.choice((0.0, 0.5, 1.0))))
    if any(step.kind in ("stubborn", "stubborn_child", "spin") for step in steps):
        # Nobody but us ends such a source.
        actions.append(Action("cancel", first + 9, 1.0))
    consumer = pick(CONSUMERS)
    if consumer == "destroyed":
        # A timeout that is destroyed with a pull would cancel the task that is still there.
        steps = tuple(Step("wait" if "poll" in step.kind else step.kind, step.turns) for step in steps)
    return Scenario(
        seed=seed,
        kind=random.choice(("generator", "chain", "iterator", "awaitables")),
        steps=steps,
        lead_in=random.choice((0, 0, 1, 2, 3)),
        release=tuple(release),
        has_response=random.random() < 0.5,
        close=pick(CLOSES),
        consumer=consumer,
        pause=random.choice((0, 0, 0, 1, 2, 5)),
        outer=outer,
        timeout=first + random.randint(0, 7),
        actions=tuple(sorted(actions, key=lambda action: action.turn)),
    )
