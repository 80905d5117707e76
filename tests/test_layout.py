"""The package keeps its own shape: who may import whom, and what is public."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
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


def imports(path: Path, *, for_checkers: bool = True) -> set[str]:
    package = ".".join(path.relative_to(SRC).parent.parts)
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    left_out = set[ast.AST]() if for_checkers else {each for guard in guards for each in ast.walk(guard)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
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


UPSTREAM = SRC / "cancelstream" / "_upstream"

# Private names of a library that this package has, too, for something of its own: never as a string outside the room.
BOTH = {"_client", "_iterator", "_response", "_usage", "_decoder", "_options", "_stream", "_model_name"}

# Names with an underscore that are public: a named tuple's.
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}

LOOKS_UP = {"getattr", "hasattr", "setattr", "delattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in {"_", *PUBLIC}


@cache
def own_names() -> set[str]:
    """The private names that this package gives to something, outside of `_upstream`."""
    found: set[str] = set()
    for path in (SRC / "cancelstream").rglob("*.py"):
        found |= {path.stem, path.parent.name}
        if UPSTREAM in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case (
                    ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
                    | ast.Name(id=name, ctx=ast.Store())
                ):
                    found.add(name)
                case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                    found |= {each.value for each in ast.walk(value) if isinstance(each, ast.Constant)}
    return found


def foreign_names(tree: ast.AST, own: set[str]) -> list[str]:
    """Where a file touches what another library keeps private."""
    found: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            case ast.Call(func=ast.Name(id=function), args=[_, ast.Constant(value=str(name)), *_]) if (
                function in LOOKS_UP and is_private(name) and (name in BOTH or name not in own)
            ):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            case ast.ImportFrom(level=0, module=str(module), names=names):
                parts = [*module.split("."), *(alias.name for alias in names)]
                found += [f"line {node.lineno}: {module} {part}" for part in parts if is_private(part)]
            case ast.Import(names=names):
                parts = [part for alias in names for part in alias.name.split(".")]
                found += [f"line {node.lineno}: {part}" for part in parts if is_private(part)]
    return found


def test_private_names_of_libraries_are_touched_in_one_room():
    """What another library keeps private is behind a function of `_upstream`, which says what happens without it."""
    own = own_names()
    found = {
        str(path.relative_to(SRC)): names
        for path in sorted((SRC / "cancelstream").rglob("*.py"))
        if UPSTREAM not in path.parents and (names := foreign_names(ast.parse(path.read_text(encoding="utf-8")), own))
    }
    assert found == {}


@pytest.mark.parametrize(
    "touched",
    [
        "stream._cast_to",
        "from openai import _streaming",
        "from pydantic_ai._utils import UNSET",
        "import pydantic_ai._utils",
        'getattr(stream, "_client", None)',
        'hasattr(stream, "_cast_to")',
    ],
)
def test_a_private_name_is_found(touched: str):
    """Every way to touch one is seen."""
    assert foreign_names(ast.parse(touched), own_names())


def test_a_room_is_entered_by_its_door():
    """What a room's files keep to themselves is imported by that room only; `_upstream` has a module a library."""
    found: list[str] = []
    for path in sorted((SRC / "cancelstream").rglob("*.py")):
        room = path.relative_to(SRC / "cancelstream").parts[0].removesuffix(".py")
        for name in sorted(imports(path)):
            head, *rest = name.split(".")
            if head != "cancelstream" or len(rest) < 2 or rest[0] == room:
                continue
            folder = SRC / "cancelstream" / rest[0]
            if rest[1].startswith("_") and (folder / f"{rest[1]}.py").exists():
                found.append(f"{path.relative_to(SRC)} imports {name}")
    assert found == []


# A class method that makes a response of the subclass: it imports the subclass when it is called.
BACK = {("cancelstream._response._response", "cancelstream._response._openai")}


def test_files_do_not_circle():
    """No file imports, while it runs and by whatever way round, itself; what only checkers read is left out."""
    files: dict[str, Path] = {}
    for path in (SRC / "cancelstream").rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    links = {
        file: {
            to
            for name in imports(path, for_checkers=False)
            for to in [name if name in files else name.rpartition(".")[0]]
            if to in files and to != file and (file, to) not in BACK
        }
        for file, path in files.items()
    }
    while ends := [file for file, to in links.items() if not to & links.keys()]:
        for file in ends:
            del links[file]
    assert {file: sorted(to & links.keys()) for file, to in links.items()} == {}


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
