"""The package keeps its own shape: who may import whom, and what is public."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import cancelstream

SRC = Path(cancelstream.__file__).parents[1]

ROOT = Path(__file__).parents[1]


def drawn() -> list[set[str]]:
    """The map of rooms as CONTRIBUTING.md draws it, read downwards: a line that names its row begins one."""
    rows: list[set[str]] = []
    for name, room in re.findall(
        r"^\| *([^|`]*?) *\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
    ):
        if name:
            rows.append(set())
        rows[-1].add(room)
    return rows


# A room imports only rooms from an earlier row, or its own parts.
ROWS = drawn()
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}

# The rooms that know no LLM library.
GROUND = {"_errors", "_state", "_closing", "_record", "_interrupt", "_stops", "_peekable"}
LLM = {"openai", "pydantic_ai", "anthropic", "strands", "genai_prices", "tiktoken"}

# A foreign package has one owner.
OWNERS = {
    "starlette": {"starlette", "_demo"},
    "uvicorn": {"_demo"},
    "redis": {"redis", "_demo"},
    "strands": {"strands"},
    "pytest": {"testing"},
    "h11": {"testing"},
    "splintr": {"_tokens"},
    "tiktoken": {"_tokens"},
    "trio": set[str](),
    "httpx": set[str](),
    "httpx2": set[str](),
}


def rooms() -> set[str]:
    package = SRC / "cancelstream"
    found = {path.relative_to(package).parts[0].removesuffix(".py") for path in package.rglob("*.py")}
    return found - {"__init__", "testing"}


def imports(path: Path) -> set[str]:
    package = ".".join(path.relative_to(SRC).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            base = resolve_name(name, package) if node.level else name
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def breaches() -> list[str]:
    found: list[str] = []
    for path in sorted((SRC / "cancelstream").rglob("*.py")):
        room = path.relative_to(SRC / "cancelstream").parts[0].removesuffix(".py")
        for name in sorted(imports(path)):
            head, *rest = name.split(".")
            if head in OWNERS and room not in OWNERS[head]:
                found.append(f"{room} imports {head}, which belongs to {sorted(OWNERS[head])}")
            if head in LLM and room in GROUND | {"testing"}:
                found.append(f"{room} imports {head}, and should know no LLM library")
            if head != "cancelstream" or room == "__init__" or not rest or rest[0] == room:
                continue
            if room == "testing":
                found.append(f"testing imports {rest[0]}, and should stand alone")
            elif rest[0] != "testing" and rest[0] in ROW and ROW[rest[0]] >= ROW[room]:
                found.append(f"{room} imports {rest[0]}, which is not above it")
    return found


def test_imports_point_one_way():
    """A room knows only the rooms above it, the ground knows no LLM library, and a foreign package has one owner."""
    assert breaches() == []


def test_every_room_stands_in_a_row():
    """The map names every room once, and no room that is not there."""
    assert sorted(room for row in ROWS for room in row) == sorted(rooms())


def test_no_cycles_hide_in_a_row():
    """Rooms of one row do not import each other."""
    for path in (SRC / "cancelstream").rglob("*.py"):
        room = path.relative_to(SRC / "cancelstream").parts[0].removesuffix(".py")
        for name in imports(path):
            head, *rest = name.split(".")
            if head == "cancelstream" and rest and room in ROW and rest[0] in ROW and rest[0] != room:
                assert ROW[rest[0]] < ROW[room], f"{room} imports {rest[0]}"


def test_what_is_public_is_listed():
    """Type checkers and `import` read one list of names; each name has a docstring."""
    tree = ast.parse((SRC / "cancelstream" / "__init__.pyi").read_text(encoding="utf-8"))
    listed = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(listed) == sorted(cancelstream.__all__) == sorted(set(dir(cancelstream)) & set(listed))
    assert len(set(listed)) == len(listed) > 20
    for name in cancelstream.__all__:
        assert getattr(cancelstream, name).__doc__, f"{name} has no docstring"


def test_a_name_that_is_none():
    """The error is Python's own."""
    with pytest.raises(AttributeError, match="module 'cancelstream' has no attribute 'stream_cancelled'"):
        _ = cancelstream.stream_cancelled


def test_the_plugin_costs_nothing():
    """Every pytest run of whoever has this package imports the plugin: it brings neither openai nor pydantic-ai."""
    code = "import sys, cancelstream.testing._plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "cancelstream.testing" in loaded
    assert not {"openai", "pydantic_ai", "pydantic"} & set(loaded)


DOORS = ("redis", "starlette", "strands", "sync", "testing")


def test_the_top_imports_no_door():
    """`import cancelstream` needs no extra: a door is imported by its own name."""
    code = "import sys; from cancelstream import *; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "cancelstream" in loaded
    assert not {f"cancelstream.{door}" for door in DOORS} & set(loaded)
    assert not {"starlette", "redis", "strands", "pytest"} & set(loaded)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_lists_its_names(door: str):
    """Every public name of a door is in its `__all__`, and has a docstring."""
    try:
        module = importlib.import_module(f"cancelstream.{door}")
    except ImportError as error:
        pytest.skip(f"{door} needs an extra that is not installed: {error}")
    for name in module.__all__:
        assert getattr(module, name).__doc__, f"{door}.{name} has no docstring"


def test_links_lead_somewhere():
    """Every relative link of the pages for readers is to a file that is there."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_texts_name_who_acts():
    """No text in the package has "whoever" or "nobody" for a subject, and no docstring begins with "What ..."."""
    for path in (path for path in (SRC / "cancelstream").rglob("*") if path.suffix in {".py", ".pyi", ".js", ".html"}):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            hidden = re.search(r"whoever|nobody", line, re.IGNORECASE) or re.search(r'"""What ', line)
            assert not hidden, f"{path.name}:{number}: {line.strip()}"
