"""The record that this package keeps on a message that was cut: where it is, its version, how it is read and written.

pydantic-ai keeps it in `message.metadata['cancelstream']`, strands in `message['metadata']['custom']['cancelstream']`.
The record holds numbers, names and the reason of the cut; only what `salvage()` took out of a message holds text.

Messages are stored and come back to an older or a newer version of this package. A record of a version that is not
known here may mean anything, so it reads as empty: there is a record, and nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

__all__ = ("read_record", "with_record")

_KEY: Final = "cancelstream"

_VERSION: Final = 1
"""The `"v"` of a record. Raise it when an older version of this package would misread a new record."""


def read_record(metadata: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the record in a message's metadata.

    Returns:
        `None` where there is no record; an empty one where its version is not known here.
    """
    record = (metadata or {}).get(_KEY)
    if not isinstance(record, dict):
        return None
    record = cast("dict[str, Any]", record)
    return record if record.get("v") == _VERSION else {}


def with_record(metadata: Mapping[str, Any] | None, **entries: Any) -> dict[str, Any]:
    """Return the metadata with these entries in its record, and everything else as it was."""
    return {**(metadata or {}), _KEY: {**(read_record(metadata) or {}), "v": _VERSION, **entries}}
