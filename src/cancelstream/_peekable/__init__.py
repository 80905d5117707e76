"""`PeekableAsyncStream`: see the next item without taking it, interrupt a pull, forward closing."""

from .._closing import Closing as Closing
from ._stream import PeekableAsyncStream as PeekableAsyncStream
