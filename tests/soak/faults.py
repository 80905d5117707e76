"""Faults to plant in a copy of the engine: whoever explores must find each.

The first two were made while the engine was designed; the others are what one would get wrong.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cancelstream

PACKAGE = Path(cancelstream.__file__).parent
GROUND = ("_errors.py", "_state.py", "_closing.py", "_upstream", "_interrupt", "_peekable")


class Engine:
    """What is explored, by the names it has in the package whose name is given."""

    def __init__(self, package: str = "cancelstream.") -> None:
        self.PeekableAsyncStream = importlib.import_module(f"{package}_peekable").PeekableAsyncStream
        interrupt = importlib.import_module(f"{package}_interrupt")
        self.Interruptible = interrupt.Interruptible
        self.Interrupted = interrupt.Interrupted


@dataclass(frozen=True)
class Fault:
    name: str
    module: str
    right: str
    wrong: str

    def plant(self, package: Path) -> None:
        path = package / self.module
        text = path.read_text()
        if text.count(self.right) != 1:
            raise ValueError(f"{self.name}: {self.module} has {text.count(self.right)} of {self.right!r}, not one")
        path.write_text(text.replace(self.right, self.wrong))


FAULTS = (
    Fault(
        "raises our own cancellation where an anyio scope waits for its own",
        "_interrupt/_driver.py",
        "            return cancelled\n        is_ours = ",
        "            return None if isinstance(raised, CancelledError) else cancelled\n        is_ours = ",
    ),
    Fault(
        "takes a timeout inside the source for a cleanup, for ever",
        "_interrupt/_attribution.py",
        "return self.task.cancelling() - (self.deferred is not None) > self._cancelling_at_start",
        "return True",
    ),
    Fault(
        "interrupts again, into the cleanup",
        "_interrupt/_driver.py",
        "            INTERRUPTING[task] = self\n            self._apply(Request.SEND)",
        "            pass",
    ),
    Fault(
        "interrupts a pull while another one of the task is ending by its own interruption",
        "_interrupt/_driver.py",
        "task is None or task in INTERRUPTING or ",
        "task is None or ",
    ),
    Fault(
        "interrupts the cleanup that the consumer's cancellation started",
        "_interrupt/_driver.py",
        "        if not attribution.is_cleaning_up_for_the_consumer():\n",
        "        if True:\n",
    ),
    Fault(
        "throws at a bare yield",
        "_interrupt/_attribution.py",
        "if at_bare_yield and (is_cleaning_up or not is_from_scope(error)):",
        "if at_bare_yield and is_cleaning_up and is_from_scope(error):",
    ),
    Fault(
        "takes two cancellations that came as one for ours alone",
        "_interrupt/_attribution.py",
        "            if count <= self._cancelling_at_start:\n                return True\n        elif count == 0:",
        "            return True\n        elif count == 0:",
    ),
    Fault(
        "forgets a cancellation that it deferred",
        "_interrupt/_attribution.py",
        "        if self.is_deferred():\n            return self.deferred\n",
        "",
    ),
    Fault(
        "takes a cancellation that was asked for before the pull for ours",
        "_interrupt/_attribution.py",
        "            self._cancelling_at_start = count - 1  # requested before the pull began, it arrives only now",
        "            pass",
    ),
    Fault(
        "hands out what arrived after the cancel",
        "_peekable/_stream.py",
        "        if self._pull.stopping:\n            self._come_late(value)\n",
        "",
    ),
    Fault(
        "closes a generator that is running",
        "_peekable/_finisher.py",
        "        await self._take(self._pull.idle)\n",
        "",
    ),
    Fault(
        "interrupts, and closes nothing",
        "_peekable/_finisher.py",
        "        await self._take(closer(self._source))\n",
        "",
    ),
    Fault(
        "has no deadline",
        "_peekable/_finisher.py",
        "        self._pull.abandon()\n",
        "",
    ),
    Fault(
        "never wakes a second reader",
        "_interrupt/_driver.py",
        "                    if not turn.done():\n                        turn.set_result(None)",
        "                    turn.cancelled()",
    ),
)


@contextmanager
def planted(fault: Fault | None) -> Iterator[Engine]:
    """The engine of a copy with that fault, or of a plain copy."""
    with TemporaryDirectory() as folder:
        name = f"engine_{abs(hash((fault, folder)))}"
        package = Path(folder) / name
        package.mkdir()
        (package / "__init__.py").touch()
        for part in GROUND:
            if (PACKAGE / part).is_dir():
                shutil.copytree(PACKAGE / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(PACKAGE / part, package / part)
        if fault is not None:
            fault.plant(package)
        sys.path.insert(0, folder)
        try:
            yield Engine(f"{name}.")
        finally:
            sys.path.remove(folder)
            for module in [module for module in sys.modules if module.split(".")[0] == name]:
                del sys.modules[module]
