"""The same promises without `async`: for `openai.OpenAI`, and for agents in blocking code.

`_stream.py` is `CancellableStream`, one raw stream; `_grip.py` is how another thread may cut its socket; `_run.py` is
`run_stream()`, a run of an agent on the thread's own event loop.
"""

from ._run import run_stream
from ._stream import CancellableStream

__all__ = ("CancellableStream", "run_stream")
