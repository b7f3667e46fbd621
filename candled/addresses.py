"""The notation of hosts and ports."""


def with_port(host: str, port: int) -> str:
    """Return `127.0.0.1:7000`, `example.org:7000` or `[::1]:7000`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
