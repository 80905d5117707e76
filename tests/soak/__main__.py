"""Show one run step by step: `python -m tests.soak SEED [--eager]`, from the top of the checkout."""

from __future__ import annotations

import sys

from .explore import explore, run
from .faults import Engine
from .scripted_loop import ScriptedLoop


def main(arguments: list[str]) -> int:
    seed = int(arguments[0])
    if "--eager" in arguments:
        report = explore(Engine(), seed, 1, eager=True)
        print(report.first or "nothing went wrong")
        return report.first is not None
    outcome = run(Engine(), ScriptedLoop(), seed)
    print(outcome)
    return bool(outcome.wrong)


sys.exit(main(sys.argv[1:]))
