"""How close the estimates of `cancelstream` come to what providers reported, on recorded traffic.

    python benchmarks/usage_accuracy.py --recordings FILE... [--misses]

Each file holds recorded provider traffic, one JSON object a line: streams (with `sse`, the payloads in order) or whole
exchanges (with `request` and `response`). What the provider reported is taken out of each stream before it is fed to
the meter, which then has to estimate it. A stream counts once whole, and once each cut at 25, 50 and 75 % of its
deltas; the truth of a cut is the number of tokens, of the whole answer's own tokenisation, that lie within the part
that was delivered. Everything is printed twice: with the tokenizer extra, and with no tokenizer at hand; the goals are
for the former. The exit status is 1 if a goal for a count was missed; costs depend on the machine's other work.

Nothing is fitted here: the constants are in `cancelstream/_counting/`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from _recordings import Case, Row, about, input_of, is_openai, kind_of_request, load, reported_output
from _usage_costs import costs

from cancelstream import _tokens
from cancelstream._counting._families import family_of
from cancelstream._usage import Count

CUTS = (0.25, 0.5, 0.75)


@dataclass
class Line:
    """A line of the table: how often something held."""

    name: str
    goal: float | None = None
    held: int = 0
    of: int = 0
    misses: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, held: bool, row: Row, expected: int, count: Count) -> None:
        self.of += 1
        self.held += held
        if not held:
            self.misses.append(f"{about(row)}: {expected}, {count}")

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.of > 0 and self.held / self.of < self.goal

    def __str__(self) -> str:
        share = f"{self.held / self.of:7.1%}" if self.of else "      -"
        goal = "" if self.goal is None else f">= {self.goal:.1%}  {'MISSED' if self.missed else 'ok'}"
        return f"{self.name:<72} {share} {self.held:>5}/{self.of:<5} {goal:<18} {self.note}".rstrip()


@dataclass
class Width(Line):
    """The median width of the interval, as a share of the value."""

    widths: list[float] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        return self.goal is not None and statistics.median(self.widths) > self.goal

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"<= {self.goal:.1%}  {'MISSED' if self.missed else 'ok'}"
        return f"{self.name:<72} {statistics.median(self.widths):7.1%} {len(self.widths):>11} {goal}".rstrip()


def judge_outputs(cases: list[Case]) -> Iterator[Line]:
    """The output counts: whole streams whose usage never came, and cut ones."""
    cut_text = Line("OpenAI text cut at 25/50/75 %: within max(1 token, 3 %)", 1.0)
    full_text = Line("OpenAI full text: within 2 tokens", 0.99)
    one_call = Line("OpenAI single call: within 1 token", 0.97)
    low = Line("lower bound <= reported, every family", 0.995)
    claude = Line("Claude 4 text >= 30 tokens: within 10 %", 0.95)
    label = Line("not labelled reported", 1.0)
    inside: dict[str, Line] = {}
    widths: dict[str, Width] = {}
    for case in cases:
        row, family = case.row, family_of(case.row["model"])
        count, reported = case.output(case.events, ended=True), reported_output(row)
        off = float("inf") if count.value is None else abs(count.value - reported)
        name = family.name or "other models"
        label.add(count.source != "reported", row, reported, count)
        low.add(count.low <= reported, row, reported, count)
        if count.high is not None:
            line = inside.setdefault(name, Line(f"finite interval contains reported: {name}", 0.95))
            line.add(count.low <= reported <= count.high, row, reported, count)
            if case.shape == "text" and count.value:
                width = widths.setdefault(name, Width(f"median width of the interval for text: {name}"))
                width.widths.append((count.high - count.low) / count.value)
        if family.name == "openai" and is_openai(row):
            if case.shape == "text":
                full_text.add(off <= 2, row, reported, count)
                for place, tokens, cut in cuts(case):
                    label.add(cut.source != "reported", row, tokens, cut)
                    missed_by = float("inf") if cut.value is None else abs(cut.value - tokens)
                    cut_text.add(
                        missed_by <= max(1, 0.03 * tokens), {**row, "id": f"{row['id']} {place:.0%}"}, tokens, cut
                    )
            elif case.shape == "one call":
                one_call.add(off <= 1, row, reported, count)
        if family.name == "claude-4" and case.shape == "text" and reported >= 30:
            claude.add(off <= 0.1 * reported, row, reported, count)
    if "openai" in widths:
        widths["openai"].goal = 0.2
    yield from (cut_text, full_text, one_call, low, claude, label)
    yield from (inside[name] for name in sorted(inside))
    yield from (widths[name] for name in sorted(widths))


def cuts(case: Case) -> Iterator[tuple[float, int, Count]]:
    """Where a stream was cut, the tokens that were delivered by then, and our count of them."""
    ends = token_ends(family_of(case.row["model"]).vocabulary)("".join(case.texts))
    if len(ends) < 8 or case.choices > 1:
        return
    places = [place for place, text in enumerate(case.texts) if text]
    for share in CUTS:
        stop = places[int(share * len(places))]
        delivered = len("".join(case.texts[:stop]).encode())
        yield share, sum(end <= delivered for end in ends), case.output(case.events[:stop], ended=False)


@cache
def token_ends(vocabulary: str) -> Callable[[str], list[int]]:
    """Where each token of a text ends, in bytes: the truth of a cut, whatever the meter may count with."""
    from splintr import Tokenizer

    tokenizer = Tokenizer.from_pretrained(vocabulary)

    def ends(text: str) -> list[int]:
        found, total = [], 0
        for token in tokenizer.encode_ordinary(text):
            total += len(tokenizer.decode_token_bytes(token))
            found.append(total)
        return found

    return ends


def judge_inputs(rows: list[Row]) -> Iterator[Line]:
    """The requests to OpenAI itself, without media."""
    kinds = ("text, chat", "text, Responses", "function tools, chat", "function tools, Responses", "response schema")
    goals = {"function tools, chat": 0.88}
    text = Line("OpenAI input, text, chat and Responses: within 5 %", 0.96)
    near = {kind: Line(f"OpenAI input, {kind}: within {near_of(kind):.0%}", goals.get(kind)) for kind in kinds}
    inside = {kind: Line(f"OpenAI input, {kind}: finite interval contains reported", 0.95) for kind in kinds}
    low = Line("OpenAI input: lower bound <= reported", 0.995)
    no_value = 0
    for row in rows:
        if not is_openai(row) or row["media"] or not row["request"]:
            continue
        count, reported, kind = input_of(row), row["tokens"]["input"], kind_of_request(row)
        low.add(count.low <= reported, row, reported, count)
        if count.value is None or count.high is None:
            no_value += 1
            continue
        close = abs(count.value - reported) <= near_of(kind) * reported
        for line in (near[kind], text) if kind.startswith("text") else (near[kind],):
            line.add(close, row, reported, count)
        inside[kind].add(count.low <= reported <= count.high, row, reported, count)
    low.note = f"{no_value} more have no value: media, the provider's own tools, stored conversations"
    yield from (text, *near.values(), *inside.values(), low)


def near_of(kind: str) -> float:
    return 0.05 if kind.startswith("text") else 0.1


def report(title: str, cases: list[Case], rows: list[Row], *, misses: bool) -> bool:
    """Print one table; whether a goal was missed."""
    print(f"\n{title}\n{'-' * len(title)}")
    lines = [*judge_outputs(cases), *judge_inputs(rows)]
    for line in lines:
        print(line)
        for miss in line.misses if misses else ():
            print("    ", miss)
    return any(line.missed for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--misses", action="store_true", help="print what each line missed")
    arguments = parser.parse_args()
    cases, rows = load(arguments.recordings)
    print(f"{len(cases)} streams, {len(rows)} requests")
    if None in [_tokens.load(name) for name in _tokens.VOCABULARIES]:
        print("the tokenizer extra is not installed: pip install 'cancelstream[tokens]'")
        return 2
    missed = report("with the tokenizer extra", cases, rows, misses=arguments.misses)
    answers = dict.fromkeys("".join(case.texts) for case in cases if is_openai(case.row))
    title = "what it costs"
    print(f"\n{title}\n{'-' * len(title)}")
    for line in costs(" ".join(answer for answer in answers if len(answer) > 200)):
        print(line)
    for name in _tokens.VOCABULARIES:
        _tokens._loaded[name] = None
    report("without a tokenizer", cases, rows, misses=arguments.misses)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
