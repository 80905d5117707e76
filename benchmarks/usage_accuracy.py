"""How close the estimates of `cancelstream` come to what providers reported, on recorded traffic.

    python benchmarks/usage_accuracy.py --recordings FILE... [--misses]

Each file holds recorded provider traffic, one JSON object a line: streams (with `sse`, the payloads in order) or whole
exchanges (with `request` and `response`). What the provider reported is taken out of each stream before it is fed to
the meter, which then has to estimate it; for the first line alone it is left in. A stream counts once whole, and once
each cut at 25, 50 and 75 % of its deltas; the truth of a cut is the number of tokens, of the whole answer's own
tokenisation, that lie within the part that was delivered. Beside each share stands the lowest of any single project:
each is a fold that shows how a rule carries over to traffic that it was not fitted on.

Everything is printed twice: with the tokenizer extra, and with no tokenizer at hand; the goals are for the former. The
exit status is 1 if a goal for a count was missed; costs depend on the machine's other work.

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

from _recordings import Case, Row, about, final, input_of, is_openai, kind_of_request, load
from _usage_costs import costs

from cancelstream import _tokens
from cancelstream._counting import family_of
from cancelstream._usage import Count

CUTS = (0.25, 0.5, 0.75)
FOLD = 5
"""Cases of one project from which on its share is printed."""
ENOUGH = 20
"""Streams of a family from which on its bounds have a goal."""


@dataclass
class Line:
    """A line of the table: how often something held."""

    name: str
    goal: float | None = None
    held: int = 0
    of: int = 0
    misses: list[str] = field(default_factory=list)
    note: str = ""
    projects: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, held: bool, row: Row, expected: int, count: Count) -> None:
        self.of += 1
        self.held += held
        self.projects.setdefault(row["repo"], []).append(held)
        if not held:
            self.misses.append(f"{about(row)}: {expected}, {count}")

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.of > 0 and self.held / self.of < self.goal

    def worst(self) -> str:
        """The project with the smallest share: what a project that nothing was fitted on may look like."""
        several = {repo: held for repo, held in self.projects.items() if len(held) >= FOLD}
        if not several or self.held == self.of:
            return ""
        repo, held = min(several.items(), key=lambda item: statistics.mean(item[1]))
        return f"lowest {statistics.mean(held):.0%} of {len(held)}: {repo}"

    def __str__(self) -> str:
        share = f"{self.held / self.of:7.1%}" if self.of else "      -"
        goal = "" if self.goal is None else f">= {self.goal:.1%} {'MISSED' if self.missed else 'ok'}"
        return f"{self.name:<72} {share} {self.held:>5}/{self.of:<5} {goal:<18} {self.worst()} {self.note}".rstrip()


@dataclass
class Bounded(Line):
    """How often an interval held, and in how many cases it has an upper bound; a goal only where enough were seen."""

    finite: int = 0

    @property
    def missed(self) -> bool:
        return self.of >= ENOUGH and super().missed

    def __str__(self) -> str:
        self.note = f"{self.finite} with an upper bound"
        return super().__str__()


@dataclass
class Width(Line):
    """The median width of the interval, as a share of the value."""

    widths: list[float] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        return self.goal is not None and bool(self.widths) and statistics.median(self.widths) > self.goal

    def __str__(self) -> str:
        if not self.widths:
            return super().__str__()
        goal = "" if self.goal is None else f"<= {self.goal:.1%}  {'MISSED' if self.missed else 'ok'}"
        return f"{self.name:<72} {statistics.median(self.widths):7.1%} {len(self.widths):>11} {goal}".rstrip()


def judge(cases: list[Case], rows: list[Row]) -> list[Line]:
    """Every line of the table, whatever the recordings."""
    return [*judge_reported(cases), *judge_outputs(cases), *judge_inputs(rows), *judge_bounds(cases, rows)]


def judge_reported(cases: list[Case]) -> Iterator[Line]:
    """What is called reported, with the provider's usage left in: at some forty moments of each stream, and at its end.

    A running total is the provider's count of what had come by then: it may not be more than the final one, nor less
    than what had visibly come. Anything else has to be the final count itself.
    """
    line = Line("called reported: the provider's final count, cut anywhere and whole", 1.0)
    for case in cases:
        if case.answers > 1:
            continue
        wanted = final(case.row)
        for usage in case.as_reported():
            for name, expected in wanted.items():
                count: Count = getattr(usage, name)
                if count.source != "reported" or expected is None:
                    continue
                running = count.method == "continuous" and name in ("output", "reasoning")
                right = (count.value or 0) <= expected if running else count.value == expected
                line.add(right, {**case.row, "id": f"{case.row['id']} {name}"}, expected, count)
    yield line


def judge_outputs(cases: list[Case]) -> Iterator[Line]:
    """The output counts: whole streams whose usage never came, and cut ones."""
    cut_text = Line("OpenAI text, cut at 25/50/75 %: within max(1 token, 3 %)", 1.0)
    full_text = Line("OpenAI text, whole: within 2 tokens", 0.99)
    one_call = Line("OpenAI, a single call: within 1 token", 0.97)
    cut_call = Line("OpenAI, a call that its limit cut: within max(2 tokens, 10 %)", 0.9)
    claude = Line("Claude, text >= 30 tokens: within 10 %", 0.95)
    claude_calls = Line("Claude, calls: within max(2 tokens, 10 %)")
    calls = Line("other makers, calls: within max(2 tokens, 10 %)", 0.8)
    width = Width("OpenAI text >= 15 tokens: median width of the interval", 0.08)
    for case in cases:
        row, family = case.row, family_of(case.row["model"])
        count, reported = case.output(case.events, ended=True), final(row)["output"] or 0
        off = float("inf") if count.value is None else abs(count.value - reported)
        near = off <= max(2, 0.1 * reported)
        if family.name == "openai" and is_openai(row):
            if case.shape == "text":
                full_text.add(off <= 2, row, reported, count)
                if count.high is not None and count.value is not None and count.value >= 15:
                    width.widths.append((count.high - count.low) / count.value)
                for place, tokens, cut in cuts(case):
                    missed_by = float("inf") if cut.value is None else abs(cut.value - tokens)
                    held = missed_by <= max(1, 0.03 * tokens)
                    cut_text.add(held, {**row, "id": f"{row['id']} {place:.0%}"}, tokens, cut)
            elif case.shape == "one call" and case.finish in ("length", "response.incomplete"):
                cut_call.add(near, row, reported, count)
            elif case.shape == "one call":
                one_call.add(off <= 1, row, reported, count)
        elif family.is_claude and case.shape == "text" and reported >= 30 and count.value is not None:
            claude.add(off <= 0.1 * reported, row, reported, count)
        elif "call" in case.shape and count.value is not None and family.name:
            (claude_calls if family.is_claude else calls).add(near, row, reported, count)
    yield from (cut_text, full_text, one_call, cut_call, claude, claude_calls, calls, width)


def judge_bounds(cases: list[Case], rows: list[Row]) -> Iterator[Line]:
    """The bounds, of the output where its usage never came, and of the input of every request without media."""
    low = {side: Line(f"lower bound <= reported, {side}", 0.997) for side in ("output", "input")}
    inside: dict[tuple[str, str], Bounded] = {}
    counted = [
        ("output", case.row, final(case.row)["output"] or 0, case.output(case.events, ended=True)) for case in cases
    ]
    asked = (row for row in rows if row["request"] and not row["media"] and row["tokens"]["input"])
    counted.extend(("input", row, row["tokens"]["input"], input_of(row)) for row in asked)
    for side, row, reported, count in counted:
        name = family_of(row["model"]).name or "unknown models"
        line = inside.setdefault((side, name), Bounded(f"interval holds the final count, {side}: {name}", 0.97))
        held = count.low <= reported and (count.high is None or reported <= count.high)
        low[side].add(count.low <= reported, row, reported, count)
        line.add(held, row, reported, count)
        line.finite += count.high is not None
    yield from low.values()
    yield from (inside[key] for key in sorted(inside))


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
    text = Line("OpenAI input, text: within 5 %", 0.97)
    kinds = {
        "text, chat": Line("    through chat: within 5 %"),
        "text, Responses": Line("    through Responses: within 5 %"),
        "response schema": Line("OpenAI input, response schema: within 10 %", 0.95),
        "function tools, chat": Line("OpenAI input, function tools, chat: within 10 %", 0.92),
        "function tools, Responses": Line("OpenAI input, function tools, Responses: within 10 %", 0.92),
    }
    no_value = 0
    for row in rows:
        if not is_openai(row) or row["media"] or not row["request"]:
            continue
        count, reported, kind = input_of(row), row["tokens"]["input"], kind_of_request(row)
        if count.value is None:
            no_value += 1
            continue
        is_text = kind.startswith("text")
        close = abs(count.value - reported) <= (0.05 if is_text else 0.1) * reported
        for line in (kinds[kind], text) if is_text else (kinds[kind],):
            line.add(close, row, reported, count)
    text.note = f"{no_value} more have no value: media, the provider's own tools, stored conversations"
    yield from (text, *kinds.values())


def report(title: str, cases: list[Case], rows: list[Row], *, misses: bool) -> bool:
    """Print one table; whether a goal was missed."""
    print(f"\n{title}\n{'-' * len(title)}")
    lines = judge(cases, rows)
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
