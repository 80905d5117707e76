"""Recorded provider traffic, read for `usage_accuracy.py`: one JSON object a line, streams or whole exchanges."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from _bodies import from_anthropic as anthropic_prompt
from _bodies import from_google as google_prompt
from pydantic_ai.messages import (
    NativeToolCallPart,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.usage import RequestUsage

from cancelstream._counting import UNKNOWN, family_of
from cancelstream._usage import Count, Meter, ResponseUsage

OPENAI_APIS = ("openai-chat", "openai-responses")
Row = dict[str, Any]


def load(paths: list[Path]) -> tuple[list[Case], list[Row]]:
    """The streams, and everything with a request, that can be judged by: not what is `suspect`, nor what is made up."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line)
    rows = [json.loads(restored(line)) for line in lines]
    rows = [row for row in rows if not row["suspect"] and row["tokens"] and not is_made_up(row)]
    streams = (row for row in rows if "sse" in row and row["api"] in (*OPENAI_APIS, "anthropic", "google"))
    return [Case(row) for row in streams], rows


def is_made_up(row: Row) -> bool:
    """Whether a recording was written by hand, as its id gives away: its counts are nobody's."""
    first = next(payloads_of(row), {}) if "sse" in row else row["response"]
    inner = first.get("response") or first.get("message") or first if isinstance(first, dict) else {}
    return bool(re.search(r"1234567|7654321|test", str(inner.get("id") or "").lower()))


def restored(line: str) -> str:
    """The line with as many characters as were elided from it: only their number matters to the meter."""
    return re.sub(r"<elided (\d+) chars>", lambda match: "x" * int(match[1]), line)


def is_openai(row: Row) -> bool:
    """Whether OpenAI itself answered, or Microsoft for it; not whatever else Azure hosts."""
    host = row["host"] or ""
    if row["api"] not in OPENAI_APIS or not (family_of(row["model"]).is_openai or family_of(row["model"]) is UNKNOWN):
        return False
    return host in ("api.openai.com", "openai", "azure") or host.endswith(
        (".openai.azure.com", ".services.ai.azure.com")
    )


def about(row: Row) -> str:
    return f"{row['id']} {row['repo']} {row['host']} {row['model']}"


def final(row: Row) -> dict[str, int | None]:
    """What the provider counted in the end, reasoning that it reports beside the output included."""
    tokens = row["tokens"]
    output, reasoning = tokens["output"], tokens["reasoning"] or 0
    if reasoning and tokens["total"] == (tokens["input"] or 0) + output + reasoning:
        output += reasoning
    return {"input": tokens["input"], "output": output, "cached_input": tokens["cached"], "reasoning": reasoning}


def kind_of_request(row: Row) -> str:
    request, chat = row["request"], row["api"] == "openai-chat"
    if request.get("tools") or request.get("functions"):
        return "function tools, chat" if chat else "function tools, Responses"
    wanted = request.get("response_format") if chat else (request.get("text") or {}).get("format")
    if wanted and wanted.get("type") == "json_schema":
        return "response schema"
    return "text, chat" if chat else "text, Responses"


def meter_of(row: Row) -> Meter:
    """A meter for a recorded request, which was sent and accepted."""
    if row["api"] in OPENAI_APIS:
        meter = Meter.for_openai(row["request"], api=row["api"], model=row["model"], url=address(row))
    else:
        build = anthropic_prompt if row["api"] == "anthropic" else google_prompt
        read = partial(build, row["request"]) if row["request"] else None
        meter = Meter(model=row["model"], provider=row["api"], provider_url=address(row), read=read)
    meter.sent()
    meter.opened()
    return meter


def address(row: Row) -> str | None:
    host = row["host"] or ""
    return f"https://{host}/v1" if "." in host else None


def input_of(row: Row) -> Count:
    """The estimate of a recorded request."""
    return meter_of(row).usage.input


@dataclass
class Case:
    """A recorded stream, ready to be fed to a meter without what its provider reported."""

    row: Row

    @cached_property
    def events(self) -> list[Any]:
        """Raw chunks for OpenAI's formats, pydantic-ai's events for the others."""
        payloads = list(payloads_of(self.row))
        match self.row["api"]:
            case "anthropic":
                return [event for payload in payloads for event in from_anthropic(payload)]
            case "google":
                return [event for payload in payloads for event in from_google(payload)]
            case _:
                return [without_usage(payload) for payload in payloads]

    @cached_property
    def texts(self) -> list[str]:
        """For each event, the text it adds."""
        return [text_of(event) or "" for event in self.events]

    @cached_property
    def choices(self) -> int:
        """How many answers the stream holds; two that are interleaved have no one prefix to count."""
        chunks = (event for event in self.events if isinstance(event, dict))
        return max(1, len({choice.get("index") for chunk in chunks for choice in chunk.get("choices") or []}))

    @cached_property
    def answers(self) -> int:
        """How many answers were recorded as one stream: a few hold a whole conversation."""
        opened = ("message_start", "response.created")
        return max(1, sum(payload.get("type") in opened for payload in payloads_of(self.row)))

    @cached_property
    def finish(self) -> str | None:
        """Why the answer ended, by a raw stream's own account."""
        return self.fed(self.events)._reader.finish_reason

    @cached_property
    def shape(self) -> str:
        """`text`, `one call`, `calls` (with or without text) or `other`."""
        meter = self.fed(self.events)
        seen = meter._seen
        if seen.natives or seen.thinking:
            return "other"
        if not seen.calls:
            return "text" if seen.text else "other"
        return "one call" if len(seen.calls) == 1 and not seen.text else "calls"

    def fed(self, events: list[Any]) -> Meter:
        meter = meter_of(self.row)
        for event in events:
            feed(meter, event)
        return meter

    def as_reported(self) -> Iterator[ResponseUsage]:
        """The usage at some forty moments of the stream, with what the provider reported left in; the last is its end.

        The provider's usage comes to the meter as it would: in the raw chunks, or as pydantic-ai's adapters
        of Anthropic and Google have it by then.
        """
        meter, payloads = meter_of(self.row), list(payloads_of(self.row))
        known: Row = {}
        finish = None
        last = len(payloads) - 1
        moments = {round(last * share / 40) for share in range(41)} | {last - 1, last - 2, last - 3}
        for place, payload in enumerate(payloads):
            if self.row["api"] in OPENAI_APIS:
                meter.feed_chunk(payload)
            else:
                events = from_anthropic(payload) if self.row["api"] == "anthropic" else from_google(payload)
                for event in events:
                    feed(meter, event)
                known.update(usage_in(payload))
                finish = finish_in(payload) or finish
                meter.observe(reported=extracted(known, self.row), finish_reason=finish)
            if place in moments:
                yield copy(meter.usage)
        reported = None if self.row["api"] in OPENAI_APIS else extracted(known, self.row)
        meter.settle(reported=reported, ended=True, finish_reason=finish)
        yield meter.usage

    def output(self, events: list[Any], *, ended: bool) -> Count:
        """The output count of these events, cut after the last of them or ended with it."""
        meter = self.fed(events)
        meter.settle(ended=ended)
        return meter.usage.output


def feed(meter: Meter, event: Any) -> None:
    if isinstance(event, dict):
        meter.feed_chunk(event)
    else:
        meter.feed_event(event)


def usage_in(payload: Row) -> Row:
    """The usage that an event of Anthropic's or Google's carries: cumulative, field by field."""
    usage = payload.get("usage") or payload.get("usageMetadata") or (payload.get("message") or {}).get("usage") or {}
    return {name: value for name, value in usage.items() if value is not None}


def finish_in(payload: Row) -> str | None:
    """Why the answer ended, once the provider said so."""
    reasons = [(payload.get("delta") or {}).get("stop_reason")]
    reasons.extend(candidate.get("finishReason") for candidate in payload.get("candidates") or [])
    return next((str(reason) for reason in reasons if reason), None)


def extracted(known: Row, row: Row) -> RequestUsage | None:
    """A usage as pydantic-ai reads it."""
    if not known:
        return None
    anthropic = row["api"] == "anthropic"
    name, model = ("usage", "model") if anthropic else ("usageMetadata", "modelVersion")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few recordings hold a usage that cannot be read
        return RequestUsage.extract(
            {name: known, model: row["model"]},
            provider=row["api"],
            provider_url="https://api.anthropic.com" if anthropic else "https://generativelanguage.googleapis.com",
            provider_fallback=row["api"],
        )


def payloads_of(row: Row) -> Iterator[Row]:
    for line in row["sse"]:
        try:
            payload = json.loads(line)
        except ValueError:
            continue
        if isinstance(payload, dict):
            yield payload


def without_usage(payload: Row) -> Row:
    payload = {name: value for name, value in payload.items() if name not in ("usage", "x_groq")}
    if isinstance(payload.get("response"), dict):
        payload["response"] = {**payload["response"], "usage": None}
    return payload


def from_anthropic(payload: Row) -> Iterator[Any]:
    index = payload.get("index", 0)
    block, delta = payload.get("content_block") or {}, payload.get("delta") or {}
    match block.get("type"):
        case None:
            pass
        case "text":
            yield PartStartEvent(index=index, part=TextPart(block.get("text") or ""))
        case "thinking":
            yield PartStartEvent(index=index, part=ThinkingPart(block.get("thinking") or ""))
        case "redacted_thinking":
            yield PartStartEvent(index=index, part=ThinkingPart("", signature=block.get("data") or "sealed"))
        case "tool_use":
            yield PartStartEvent(index=index, part=ToolCallPart(block["name"]))
        case native:
            yield PartStartEvent(index=index, part=NativeToolCallPart(native))
    match delta.get("type"):
        case "text_delta":
            yield PartDeltaEvent(index=index, delta=TextPartDelta(delta["text"]))
        case "thinking_delta":
            yield PartStartEvent(index=index, part=ThinkingPart(delta["thinking"]))
        case "citations_delta":
            # pydantic-ai has its own form of a citation: here it only matters that there is one.
            yield PartDeltaEvent(index=index, delta=TextPartDelta("", citations_delta=[delta["citation"]]))
        case "input_json_delta":
            yield PartDeltaEvent(index=index, delta=ToolCallPartDelta(args_delta=delta["partial_json"]))
        case _:
            pass


def from_google(payload: Row) -> Iterator[Any]:
    for candidate in payload.get("candidates") or []:
        for index, part in enumerate((candidate.get("content") or {}).get("parts") or []):
            if part.get("text"):
                kind = ThinkingPart if part.get("thought") else TextPart
                yield PartStartEvent(index=index, part=kind(part["text"]))
            elif call := part.get("functionCall"):
                yield PartStartEvent(index=index, part=ToolCallPart(call.get("name") or "", call.get("args") or {}))
            elif part:
                yield PartStartEvent(index=index, part=NativeToolCallPart("native"))


def text_of(event: Any) -> str | None:
    if isinstance(event, PartDeltaEvent):
        return event.delta.content_delta if isinstance(event.delta, TextPartDelta) else None
    if isinstance(event, PartStartEvent):
        return event.part.content if isinstance(event.part, TextPart) else None
    if event.get("type") == "response.output_text.delta":
        return event["delta"]
    choices = event.get("choices") or []
    return (choices[0].get("delta") or {}).get("content") if len(choices) == 1 else None
