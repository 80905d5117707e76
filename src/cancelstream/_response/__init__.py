"""`CancellableStreamedResponse`: one streamed response that can be stopped, and that says what it was."""

from .._openai import text_of as text_of
from ._control import cancelled_job as cancelled_job
from ._control import has_failed as has_failed
from ._control import has_made as has_made
from ._control import is_all_said as is_all_said
from ._control import is_job as is_job
from ._control import is_whole as is_whole
from ._control import leave as leave
from ._control import on_cut as on_cut
from ._control import open_lazily as open_lazily
from ._control import shut_socket_now as shut_socket_now
from ._feed_agent import LEAVE_TIMEOUT as LEAVE_TIMEOUT
from ._openai import open_stream as open_stream
from ._response import CancellableStreamedResponse as CancellableStreamedResponse
