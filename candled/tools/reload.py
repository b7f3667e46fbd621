"""`candled reload`: has a running daemon read its settings again."""

from candled.control import NoDaemon, request_reload
from candled.errors import ConfigError


async def reload_daemon(path: str) -> int:
    """Reload the daemon at a control socket, and print the result.

    Returns:
        0, or 1 if some changes need a restart.

    Raises:
        ConfigError: no daemon answers, or its settings have mistakes and it continues with the former ones.
    """
    if not path:
        raise ConfigError('control.socket: is "", so the daemon has no control socket: send it SIGHUP')
    try:
        result = await request_reload(path)
    except NoDaemon as error:
        hint = "control.socket is relative to the directory that the daemon was started in"
        raise ConfigError(f"no daemon answers at {error}; {hint}") from error
    if result.problems:
        raise ConfigError(result.problems)
    if result.applied:
        print(f"changed: {', '.join(result.applied)}")
    elif not result.needs_restart:
        print("nothing has changed")
    if result.needs_restart:
        print(f"needs a restart: {', '.join(result.needs_restart)}")
    return 1 if result.needs_restart else 0
