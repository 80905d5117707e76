"""`PeekableAsyncStream`: see the next item without taking it, interrupt a pull, forward closing."""

from .._closing import Closing as Closing
from ._stream import PeekableAsyncStream as PeekableAsyncStream
from ._stream import is_stranded as is_stranded
from ._stream import require_own_loop as require_own_loop
from ._stream import shut_socket_now as shut_socket_now
