"""Tools and schemas as an OpenAI model is shown them, for counting.

OpenAI's models do not read the JSON of a request. They read the functions as TypeScript declarations in a namespace,
and a response schema as compact JSON, both inside a system message. The rendering of the open-weight sibling models
is public (github.com/openai/harmony); where the hosted models differ from it, what is here follows their reported
counts: titles are comments like descriptions.

Known limits: an `anyOf` is shown as a union, which is a guess. Other providers show tools in other ways; for them the
JSON itself is counted, and the bounds are wide.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

__all__ = ("Tool", "compact", "declarations", "response_format")

_DEEPEST: Final = 12
_MOST_TYPES: Final = 5_000
"""Schemas may refer to themselves, in more ways than one: nothing is read deeper down than this, nor at more length."""

_UNSHOWN: Final = frozenset(
    {"required", "additionalProperties", "$schema", "strict", "format", "pattern", "default", "uniqueItems"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "minItems", "maxItems"}
)
"""The keys of a response schema that a model is not shown: 82 of 89 recorded ones then count to within 3 tokens."""

_NAMED: Final = frozenset({"properties", "$defs", "definitions"})
"""Where the keys of a schema are the user's own names."""

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a request offers to the model."""

    name: str
    description: str
    parameters: Schema


def declarations(tools: Iterable[Tool]) -> tuple[str, int, bool]:
    """The functions as an OpenAI model reads them, how many tokens to add to the count of that text, and if it is all.

    The correction is what reported counts show: one token less for a function with parameters, unless the first of
    them has a comment. Schemas of thousands of types are left out from some point on.
    """
    parts = ["# Tools\n\n## functions\n\nnamespace functions {\n\n"]
    correction, types = 0, _TypeScript()
    for tool in tools:
        fields = types.fields_of(tool.parameters)
        parts.append(_comment(tool.description))
        if fields:
            title = _comment(tool.parameters.get("title")) + _comment(tool.parameters.get("description"))
            parts.append(f"type {tool.name} = (_: {title}{{\n{fields}}}) => any;\n\n")
            correction -= not fields.startswith("//")
        else:
            parts.append(f"type {tool.name} = () => any;\n\n")
    parts.append("} // namespace functions")
    return "".join(parts), correction, types.left > 0


def response_format(name: str, description: str, schema: Schema) -> str:
    """A response schema as an OpenAI model reads it: its shape and its words, without what only a validator needs."""
    return f"# Response Formats\n\n## {name}\n\n{_comment(description)}{compact(_shown(schema))}"


def compact(value: object) -> str:
    """JSON without spaces; what JSON cannot hold is left out."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return ""


def _comment(text: object) -> str:
    """Text above a declaration, a line of comment for each of its lines; nothing for blank ones."""
    lines = text.splitlines() if isinstance(text, str) else ()
    return "".join(f"// {line.strip()}\n" for line in lines if line.strip())


class _TypeScript:
    """JSON schemas as TypeScript types, with the definitions that they refer to; `left` is how many more are read."""

    def __init__(self) -> None:
        self._definitions: Mapping[str, Any] = {}
        self.left = _MOST_TYPES

    def fields_of(self, root: Schema) -> str:
        """The properties of a function's parameters."""
        self._definitions = {**_mapping(root.get("definitions")), **_mapping(root.get("$defs"))}
        return self.fields(root, 0)

    def fields(self, schema: Schema, depth: int) -> str:
        """The properties of an object, a line each, with their comments above them."""
        required = schema.get("required")
        required = cast("list[object]", required) if isinstance(required, list) else []
        lines: list[str] = []
        for name, value in _mapping(schema.get("properties")).items():
            if self.left <= 0:
                break
            field = self._resolved(value)
            lines.append(_comment(field.get("title")) + _comment(field.get("description")))
            default = f" // default: {compact(field['default'])}" if "default" in field else ""
            optional = "" if name in required else "?"
            lines.append(f"{name}{optional}: {self._type(field, depth)},{default}\n")
        return "".join(lines)

    def _type(self, schema: Schema, depth: int) -> str:
        self.left -= 1
        if depth > _DEEPEST or self.left <= 0:
            return "any"
        for union in ("anyOf", "oneOf", "allOf"):
            if isinstance(members := schema.get(union), list):
                types = (self._type(self._resolved(one), depth + 1) for one in cast("list[object]", members))
                return " | ".join(types)
        if "const" in schema:
            return compact(schema["const"])
        if isinstance(values := schema.get("enum"), list):
            return " | ".join(compact(value) for value in cast("list[object]", values))
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(self._type({**schema, "type": one}, depth + 1) for one in cast("list[object]", kind))
        if kind in ("integer", "number"):
            return "number"
        if kind == "array":
            return f"{self._type(self._resolved(schema.get('items')), depth + 1)}[]"
        if kind == "object" or "properties" in schema:
            fields = self.fields(schema, depth + 1)
            return f"{{\n{fields}}}" if fields else "object"
        return kind if isinstance(kind, str) else "any"

    def _resolved(self, schema: object) -> Schema:
        """The schema itself, or the definition it refers to; nothing for what is no schema."""
        schema = _mapping(schema)
        for _ in range(_DEEPEST):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                break
            own = {name: value for name, value in schema.items() if name != "$ref"}
            schema = {**_mapping(self._definitions.get(reference.rpartition("/")[2])), **own}
        return schema


def _shown(value: object, *, names: bool = False) -> object:
    """The schema without `_UNSHOWN`; under `properties` the names are the user's own, one called format among them."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return {
            key: _shown(item, names=not names and key in _NAMED) for key, item in items if names or key not in _UNSHOWN
        }
    if isinstance(value, list):
        return [_shown(item) for item in cast("list[object]", value)]
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
