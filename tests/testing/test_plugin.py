"""The fixture that pytest finds by itself."""

import threading

import pytest
from openai import AsyncOpenAI

from cancelstream.testing import Answer, ScriptedServer, Silence, StartServer, Text

pytest_plugins = ["pytester"]


async def test_the_fixture(scripted_server: StartServer) -> None:
    """A call starts a server with a script; a test may start several."""
    one = scripted_server(Answer(Text("Hi"), Silence()))
    two = scripted_server(Answer(Text("there")), repeat=True)
    assert isinstance(one, ScriptedServer)
    assert one.url != two.url
    async with AsyncOpenAI(base_url=one.base_url, api_key="none") as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        await anext(stream)
        await stream.close()
        await one.records[0].until_disconnected()


def test_servers_end_with_their_test(pytester: pytest.Pytester, scripted_server: StartServer) -> None:
    """Passed or failed, no server outlives the test that started it."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(
        """
        import threading
        from cancelstream.testing import Answer, Silence, Text

        def test_passes(scripted_server):
            scripted_server(Answer(Text("Hi")))
            scripted_server(Answer(Silence()))
            assert sum(thread.name == "ScriptedServer" for thread in threading.enumerate()) == 2

        def test_fails(scripted_server):
            assert not any(thread.name == "ScriptedServer" for thread in threading.enumerate())
            scripted_server(Answer(Text("Hi")))
            raise AssertionError("on purpose")

        def test_is_the_last():
            assert not any(thread.name == "ScriptedServer" for thread in threading.enumerate())
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: on purpose*"])
    assert not any(thread.name == "ScriptedServer" for thread in threading.enumerate())
