"""The control socket: a real Unix socket, for one user and one daemon at a time."""

import asyncio
import stat
from pathlib import Path

import pytest

from candled.control import ControlSocket, NoDaemon, request_reload
from candled.errors import ConfigError
from candled.reload import ReloadResult
from candled.tools.reload import reload_daemon
from candled.workers import reload_all, socket_of

RESULT = ReloadResult(applied=("log.level",), needs_restart=("server.port",))
PATH = "candled.control"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Addresses of Unix sockets are short, so that a path has to be relative."""
    monkeypatch.chdir(tmp_path)


def opened(result: ReloadResult = RESULT, path: str = PATH) -> ControlSocket:
    async def reload() -> ReloadResult:
        return result

    return ControlSocket(path, reload)


async def test_a_reload_is_answered_with_its_result():
    control = opened()
    await control.start()
    assert await request_reload(PATH) == RESULT
    assert await asyncio.gather(request_reload(PATH), request_reload(PATH)) == [RESULT, RESULT]
    assert stat.S_IMODE(Path(PATH).stat().st_mode) == 0o600
    await control.stop()
    assert not Path(PATH).exists()


async def test_a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(caplog):
    first, second = opened(), opened(ReloadResult())
    await first.start()
    await second.start()
    assert "cannot listen on candled.control" in caplog.text
    assert "another process uses it" in caplog.text
    await second.stop()
    assert await request_reload(PATH) == RESULT
    await first.stop()

    killed = opened()
    await killed.start()
    Path(PATH).rename("left")  # as if the process had been killed
    await killed.stop()
    Path("left").rename(PATH)
    await second.start()
    assert await request_reload(PATH) == ReloadResult()
    await second.stop()


async def test_a_file_that_is_no_socket_stays(caplog):
    Path(PATH).write_text("mine")
    await opened().start()
    assert "it is no socket" in caplog.text
    assert Path(PATH).read_text() == "mine"


async def test_a_path_that_cannot_be_used_is_a_line_and_none_is_no_line(caplog):
    await opened(path="").start()
    assert caplog.text == ""
    for path in ("missing/candled.control", "x" * 200):
        control = opened(path=path)
        await control.start()
        assert f"cannot listen on {path}" in caplog.messages[-1]
        await control.stop()


async def test_an_unknown_request_gets_no_answer_and_the_next_one_does():
    control = opened()
    await control.start()
    for request in (b"stop\n", b"", b"x" * 200_000):
        reader, writer = await asyncio.open_unix_connection(PATH)
        writer.write(request)
        if not request.endswith(b"\n"):
            writer.write_eof()
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            assert len(request) > 1000
        writer.close()
    assert await request_reload(PATH) == RESULT
    await control.stop()


async def test_the_command_prints_the_result(capsys):
    control = opened()
    await control.start()
    assert await reload_daemon(PATH) == 1
    assert capsys.readouterr().out == "changed: log.level\nneeds a restart: server.port\n"
    await control.stop()
    for result, printed in (
        (ReloadResult(), "nothing has changed\n"),
        (ReloadResult(applied=("a", "b")), "changed: a, b\n"),
    ):
        control = opened(result)
        await control.start()
        assert await reload_daemon(PATH) == 0
        assert capsys.readouterr().out == printed
        await control.stop()


async def test_the_command_fails_with_the_problems(capsys):
    control = opened(ReloadResult(problems=("server.port: wrong", "log.level: wrong")))
    await control.start()
    with pytest.raises(ConfigError) as caught:
        await reload_daemon(PATH)
    assert caught.value.problems == ("server.port: wrong", "log.level: wrong")
    await control.stop()
    with pytest.raises(ConfigError, match="no daemon answers at candled.control: No such file".replace(".", r"\.")):
        await reload_daemon(PATH)
    with pytest.raises(ConfigError, match="send it SIGHUP"):
        await reload_daemon("")


async def test_a_daemon_that_ends_before_it_answers_is_none():
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    server = await asyncio.start_unix_server(end, PATH)
    with pytest.raises(NoDaemon, match="the daemon ended before it answered"):
        await request_reload(PATH)
    server.close()


async def test_several_processes_give_one_result():
    paths = [socket_of(name, PATH) for name in ("ingest", "serve-1")]
    assert paths == ["candled.control-ingest", "candled.control-serve-1"]
    assert socket_of("ingest", "") == ""
    controls = [opened(RESULT, paths[0]), opened(ReloadResult(applied=("log.level", "x")), paths[1])]
    for one in controls:
        await one.start()
    assert await reload_all(["ingest", "serve-1"], PATH) == ReloadResult(
        applied=("log.level", "x"), needs_restart=("server.port",)
    )
    await controls[1].stop()
    result = await reload_all(["ingest", "serve-1"], PATH)
    assert result.problems == ("serve-1 did not reload: candled.control-serve-1: No such file or directory",)
    await controls[0].stop()
