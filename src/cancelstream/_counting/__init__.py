"""Text to tokens: how many a request and an answer are, with bounds, as their maker counts them.

Read `_count` first (what is known of one number), then `_makers` (how the models of each maker count), `_prompt`
(what of a request bears on its size), `_input` and `_output`. Nothing in this room awaits or touches a network, and
nothing in it knows what a provider reported: that is the room of usage.
"""

from ._count import MOST, NOTHING, SOURCES, Count, Source, as_count, join
from ._delivered import Delivered
from ._family import Family
from ._input import count_prompt
from ._makers import UNKNOWN, family_of
from ._output import Answer, count_answer
from ._prompt import Api, Prompt, Turn, from_chat, from_responses
from ._prompt_messages import from_messages
from ._schema import Tool

__all__ = (
    "MOST",
    "NOTHING",
    "SOURCES",
    "UNKNOWN",
    "Answer",
    "Api",
    "Count",
    "Delivered",
    "Family",
    "Prompt",
    "Source",
    "Tool",
    "Turn",
    "as_count",
    "count_answer",
    "count_prompt",
    "family_of",
    "from_chat",
    "from_messages",
    "from_responses",
    "join",
)
