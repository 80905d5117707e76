"""Fixtures of the scripted server's own tests."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest
import trustme

# What the tests here share is a module beside them, and the import mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
