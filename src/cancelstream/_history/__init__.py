"""Histories that cannot lie: refuse a cut answer before it is sent, or repair it first.

pydantic-ai marks a message that was cut with its `state`: a `ModelResponse` is `'interrupted'` or
`'incomplete'`, a `ModelRequest` is `'interrupted'` when the tools whose results it collects were stopped.
Nothing refuses such a message later: the text goes back to the model as an ordinary answer, and without a prompt
it even becomes the final output. `check_history` refuses it, `salvage` makes it usable.

A salvaged message keeps its state, so that no reader takes it for whole. The mark that makes it usable is the record
of what was done, in ``metadata['cancelstream']['salvage']``.

Known limits. The state is all there is to go by: an answer whose state was lost on its way through another format
is not seen. A whole answer that crossed one of pydantic-ai's usage limits is `'interrupted'` as well, and is
treated like a cut one. A history that ends in a whole response with tool calls may be of a program that was killed
while the tools ran, or one that waits for deferred results: nothing tells them apart. It is refused with a new prompt,
and passes with `deferred_tool_results=`, or without a prompt, when pydantic-ai runs those calls.

`_guard.py` asks and refuses, `_salvage.py` repairs a history turn by turn, `_parts.py` decides part by part what of a
cut response may be sent.
"""

from ._guard import CUT_STATES as CUT_STATES
from ._guard import HistoryPolicy as HistoryPolicy
from ._guard import check_history as check_history
from ._guard import is_incomplete as is_incomplete
from ._guard import lacks_results as lacks_results
from ._guard import mark_interrupted as mark_interrupted
from ._parts import INTERRUPTED_NOTE as INTERRUPTED_NOTE
from ._salvage import INTERRUPTED_TOOL_RESULT as INTERRUPTED_TOOL_RESULT
from ._salvage import apply_policy as apply_policy
from ._salvage import salvage as salvage

__all__ = (
    "CUT_STATES",
    "INTERRUPTED_NOTE",
    "INTERRUPTED_TOOL_RESULT",
    "HistoryPolicy",
    "apply_policy",
    "check_history",
    "is_incomplete",
    "lacks_results",
    "mark_interrupted",
    "salvage",
)
