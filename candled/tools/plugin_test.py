"""Runs the conformance kit on a plugin, for `candled plugin test`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from candled.errors import ConfigError
from candled.exchange import Exchange
from candled.testing.kit import format_result, run_checks
from candled.testing.modules import load_exchanges, make_exchange
from candled.testing.recording import Recording, read_recording
from candled.testing.replayed import RecordedClock

_FOLDER = Path("tests")


def check_plugin(
    module: str, paths: Sequence[Path] = (), exchange: str | None = None, assignments: Iterable[str] = ()
) -> int:
    """Run every check on the exchanges of a plugin, and print the results; return the exit status.

    `paths` are recordings; by default those in the folder `tests` that name an exchange of the plugin.

    Raises:
        ConfigError: there is no such plugin or recording, or the settings are wrong.
    """
    offered = load_exchanges(module)
    if exchange is not None and exchange not in offered:
        raise ConfigError(f"{module}: expected --exchange with one of {', '.join(offered)}, got {exchange}")
    recordings = {str(path): read_recording(path) for path in paths or sorted(_FOLDER.rglob("*.jsonl*"))}
    chosen = _choose(offered, recordings, exchange, is_named=bool(paths))
    if not chosen:
        raise ConfigError(
            f"{module}: expected --recording FILE, or a recording in the folder {_FOLDER}, got none: "
            f"make one with `candled plugin record {module} BTC/USDT`"
        )
    outcomes: Counter[str] = Counter()
    for name, own in chosen.items():
        make_exchange(offered[name], assignments, RecordedClock())  # reports wrong settings
        print(f"{name}: {', '.join(own)}")
        for result in run_checks(offered[name], own, assignments):
            outcomes[result.outcome] += 1
            print(format_result(result))
    print(", ".join(f"{outcomes[one]} {one}" for one in ("passed", "failed", "skipped")))
    if outcomes["failed"] > 1:
        print("Mend the first failure first: others may follow from it.")
    return 1 if outcomes["failed"] else 0


def _choose(
    offered: Mapping[str, type[Exchange]], recordings: Mapping[str, Recording], exchange: str | None, *, is_named: bool
) -> dict[str, dict[str, Recording]]:
    """Return the recordings of each exchange. Those that the user named are for the only one, or the chosen one."""
    only = exchange or (next(iter(offered)) if len(offered) == 1 else None)
    chosen: dict[str, dict[str, Recording]] = {}
    for name, recording in recordings.items():
        found = recording.header.exchange
        target = only if is_named and only is not None else found
        if target in offered and (exchange is None or target == exchange):
            chosen.setdefault(target, {})[name] = recording
    return chosen
