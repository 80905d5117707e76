"""strands: the same promises for `stream_async`.

`stream_async(agent, prompt)` iterates the events of strands' own `agent.stream_async`, unchanged and in order, and
gives back an object with a `cancel()`.

Mechanism. Two of strands' middleware stages are wrapped, once for each agent (`_stages.py`): the model call, whose
chunks are pulled so that the pull can be interrupted and its connection closed at once (`_model_call.py`), and the
tool call. A stopped call ends as strands itself ends a cancelled call, with the text that had arrived as its
message (`_messages.py`), so hooks, sessions, metrics and history see one ordinary end. Whatever else strands waits
for is interrupted in the pull of its events (`_stream.py`). No task is cancelled.

Known limits. A subclass of strands' `Agent` that does not call the stages is only interrupted, and what had arrived is
lost with it. An agent that a tool calls is interrupted with the tool: its partial text is not kept, nor its usage
counted. The part of a tool call that strands' OpenAI and LiteLLM classes have read and not handed out is looked up in
their own local variables, and found no more if those are renamed. Bedrock's thread can be stopped as soon as its
response has headers; before that it is left to itself. A model class that does its work in a thread and knows nothing
of `cancel_signal` goes on until it has the next chunk.

The package `strands` is imported here and nowhere else.
"""

from ._stream import CancellableAgentStream as CancellableAgentStream
from ._stream import stream_async as stream_async

__all__ = ("CancellableAgentStream", "stream_async")
