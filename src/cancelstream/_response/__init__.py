"""`CancellableStreamedResponse`: one streamed response that can be stopped, and that says what it was."""

from .._openai import text_of as text_of
from ._feed_agent import LEAVE_TIMEOUT as LEAVE_TIMEOUT
from ._openai import open_stream as open_stream
from ._response import CancellableStreamedResponse as CancellableStreamedResponse
