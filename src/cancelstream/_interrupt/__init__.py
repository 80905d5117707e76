"""Interrupting one awaitable: `Pull` for a stream's own pulls, `Interruptible` for everything else that is awaited."""

from ._deadline import DEADLINE as DEADLINE
from ._deadline import Deadline as Deadline
from ._driver import Interrupted as Interrupted
from ._driver import Pull as Pull
from ._interruptible import Interruptible as Interruptible
from ._letting_go import run_to_wait as run_to_wait
from ._loops import ELSEWHERE as ELSEWHERE
from ._loops import MisplacedPull as MisplacedPull
from ._loops import require_loop as require_loop
from ._loops import running_loop as running_loop
