"""The workshop: `nox` runs what a change has to pass, `nox -l` lists the rest.

Every session installs the built package, never the source tree, so that what is tested is what is shipped.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = [
    version
    for version in nox.project.python_versions(PROJECT)
    if shutil.which(f"python{version}") or version == f"{sys.version_info.major}.{sys.version_info.minor}"
]
EXTRAS = ["redis", "starlette", "strands", "tokens"]
ALL = "serve," + ",".join(EXTRAS)
STRANDS_TESTS = ["agent", "event_loop", "hooks", "middleware", "multiagent", "--ignore-glob=*a2a*"]


def _install(session: nox.Session, extras: str, *options: str, group: str = "tests") -> None:
    package = f".[{extras}]" if extras else "."
    session.install(*options, package, *nox.project.dependency_groups(PROJECT, group))


def _pytest(session: nox.Session, *arguments: str, **env: str) -> None:
    session.run("coverage", "run", "-p", "-m", "pytest", *(session.posargs or arguments), env=env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, with every extra."""
    _install(session, ALL)
    _pytest(session)


@nox.session(python=PYTHONS[-1:])
@nox.parametrize("loop", ["eager", "uvloop"])
def loops(session: nox.Session, loop: str) -> None:
    """The tests of everything that touches the loop, on the other loops."""
    _install(session, ALL)
    # In debug mode uvloop looks at the stack whenever a generator is collected, and crashes the interpreter by it.
    options = ["-o", "asyncio_debug=false"] if loop == "uvloop" else []
    _pytest(session, *options, "tests/engine", "tests/run", "tests/test_peekable.py", CANCELSTREAM_TEST_LOOP=loop)


@nox.session(python=PYTHONS[:1])
@nox.parametrize("extra", ["", *EXTRAS])
def extras(session: nox.Session, extra: str) -> None:
    """The tests without extras, and with each one alone: what is missing skips, and nothing else fails."""
    _install(session, extra)
    _pytest(session)


@nox.session(python=PYTHONS[:1], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that `pyproject.toml` promises."""
    _install(session, ALL, "--resolution", "lowest-direct")
    _pytest(session)


@nox.session(python=PYTHONS[-1:], venv_backend="uv")
def newest(session: nox.Session) -> None:
    """The tests with the newest versions there are, pre-releases included."""
    _install(session, ALL, "--upgrade", "--prerelease", "allow")
    _pytest(session)


@nox.session(python=PYTHONS[:1])
def strands(session: nox.Session) -> None:
    """strands' own tests of streaming and cancelling, from its source distribution, with our wrapper imported."""
    session.install(
        ".[strands]", "strands-agents[otel]", "pip", "pytest", "pytest-asyncio", "pytest-timeout", "moto>=5"
    )
    ask = "import importlib.metadata; print(importlib.metadata.version('strands-agents'))"
    release = f"strands-agents=={str(session.run('python', '-c', ask, silent=True)).strip()}"
    folder = Path(session.create_tmp())
    session.run("pip", "download", "--no-deps", "--no-binary", "strands-agents", "--dest", str(folder), release)
    source = folder / release.replace("-", "_").replace("==", "-")
    shutil.unpack_archive(f"{source}.tar.gz", folder)
    session.chdir(source / "tests" / "strands")
    session.run("pytest", "-p", "cancelstream.strands", *(session.posargs or STRANDS_TESTS))


@nox.session(python=PYTHONS[:1])
def docs(session: nox.Session) -> None:
    """Every snippet of the README and the guides, run."""
    _install(session, ALL)
    session.run("pytest", "README.md", "docs")


@nox.session(python=PYTHONS[:1])
def site(session: nox.Session) -> None:
    """The documentation site, with the reference made of the docstrings; a link that leads nowhere fails."""
    session.install("-e", f".[{ALL}]", *nox.project.dependency_groups(PROJECT, "site"))
    session.run("zensical", "build", "--strict", "--clean")


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session(python=PYTHONS[:1])
def types(session: nox.Session) -> None:
    """Both type checkers over the package, and over the tests that only a checker reads."""
    session.install("-e", f".[{ALL}]", *nox.project.dependency_groups(PROJECT, "tests", "types"))
    session.run("pyright")
    session.run("mypy")


@nox.session(python=PYTHONS[:1])
def demo(session: nox.Session) -> None:
    """The command, as the README has it."""
    session.install(".")
    session.run("cancelstream", "demo")


@nox.session(python=PYTHONS[:1])
def benchmarks(session: nox.Session) -> None:
    """Every benchmark that needs nothing but this machine; each prints ratios against a peer of the same run."""
    _install(session, ALL)
    names = (
        "cancel_latency",
        "per_chunk",
        "many_streams",
        "text_stream",
        "stop_latency",
        "sync_cancel",
        "sync_run",
        "strands_cancel",
    )
    for name in names:
        session.run("python", f"benchmarks/{name}.py")


@nox.session(python=PYTHONS[:1])
def soak(session: nox.Session) -> None:
    """The long exploration: at least 100,000 interleavings, the faults it must find, the heavy web faults."""
    _install(session, ALL)
    session.run(
        "pytest",
        "tests/soak",
        "-o",
        "faulthandler_timeout=3600",
        *session.posargs,
        env={"CANCELSTREAM_SOAK_RUNS": "100000", **os.environ},
    )
    session.run("pytest", "-m", "soak", "--timeout", "1800", *session.posargs)


@nox.session(python=PYTHONS[:1])
def mutation(session: nox.Session) -> None:
    """Small changes to the code that everything rests on; one that no test notices has its reason in a list."""
    session.install("-e", f".[{ALL}]", *nox.project.dependency_groups(PROJECT, "tests", "mutation"))
    shutil.rmtree("mutants", ignore_errors=True)
    session.run("mutmut", "run", *session.posargs)
    printed = str(session.run("mutmut", "results", silent=True))
    results = [line.split(": ") for line in printed.splitlines() if line.startswith("    cancelstream.")]
    listed = Path("tests/survivors.txt").read_text(encoding="utf-8").splitlines()
    known = {line.split(": ")[0] for line in listed if line and not line.startswith("#")}
    survived = {name.strip() for name, status in results if status != "timeout"}
    if survived - known:
        session.error("no test notices these changes (`mutmut show NAME`): " + ", ".join(sorted(survived - known)))
    if known - survived and not session.posargs:
        session.warn("take these from tests/survivors.txt: " + ", ".join(sorted(known - survived)))


@nox.session
def coverage(session: nox.Session) -> None:
    """Combine what the other sessions covered, and fail under 100 %."""
    session.install("coverage[toml]")
    session.run("coverage", "combine")
    session.run("coverage", "report", "--fail-under", "100")
