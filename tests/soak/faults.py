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
GROUND = ("_errors.py", "_state.py", "_closing.py", "_transport.py", "_pull", "_peekable")


class Engine:
    """What is explored, by the names it has in the package whose name is given."""

    def __init__(self, package: str = "cancelstream.") -> None:
        self.PeekableAsyncStream = importlib.import_module(f"{package}_peekable").PeekableAsyncStream
        pull = importlib.import_module(f"{package}_pull")
        self.Interruptible = pull.Interruptible
        self.Interrupted = pull.Interrupted


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
        "_pull/_driver.py",
        "            return theirs\n        ours = ",
        "            return None if isinstance(raised, CancelledError) else theirs\n        ours = ",
    ),
    Fault(
        "takes a timeout inside the source for a clean-up, for ever",
        "_pull/_claims.py",
        "return self.task.cancelling() - (self.held is not None) > self._floor",
        "return True",
    ),
    Fault(
        "strikes again, into the clean-up",
        "_pull/_driver.py",
        "            STRIKING[task] = self\n            self._struck = True\n            self._alert = self._abandoned",
        "            self._struck = True",
    ),
    Fault(
        "strikes what another pull of the task has struck",
        "_pull/_driver.py",
        "task is None or task in STRIKING or ",
        "task is None or ",
    ),
    Fault(
        "strikes the clean-up of somebody else's cancellation",
        "_pull/_driver.py",
        "        if not claims.unwinding_theirs():\n",
        "        if True:\n",
    ),
    Fault(
        "throws at a bare yield",
        "_pull/_claims.py",
        "if at_bare_yield and (unwinding or not _is_anyio(error)):",
        "if at_bare_yield and unwinding and _is_anyio(error):",
    ),
    Fault(
        "takes two cancellations that came as one for ours alone",
        "_pull/_claims.py",
        "            if count <= self._floor:\n                return True\n        elif count == 0:",
        "            return True\n        elif count == 0:",
    ),
    Fault(
        "forgets a cancellation that it held",
        "_pull/_claims.py",
        "        if self.held_stands():\n            return self.held\n",
        "",
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
        "_pull/_driver.py",
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
