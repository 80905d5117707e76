"""openai's own streams: what one is, what it says, and the fast way to read it."""

from ._growing import Growing as Growing
from ._lane import MORE as MORE
from ._lane import BlockingLane as BlockingLane
from ._lane import FastLane as FastLane
from ._mapping import Mapping as Mapping
from ._pieces import CHAT as CHAT
from ._pieces import RESPONSES as RESPONSES
from ._refused import adopt as adopt
from ._refused import discard as discard
from ._stream import Asked as Asked
from ._stream import asked_of as asked_of
from ._stream import check_stream as check_stream
from ._transcript import Ahead as Ahead
from ._transcript import Transcript as Transcript
from ._transcript import text_of as text_of
