"""The processes at one Redis: each announces itself in a key that expires, and reads the keys of the others."""

from collections.abc import Callable, Sequence
from typing import Any

from candled.bus.processes import MAX_BYTES, ProcessFacts, decode_process, encode_process
from candled.tasks import TaskSet

from .connections import Call, Caller, reason_of
from .context import RedisContext

_TURN_S = 5.0
_KEY_TTL_S = 15.0
_LIST_TTL_S = 86_400
_MOST_READ = 500


class ProcessRegistry:
    """Announces this process and reads the announcements of the others.

    It uses plain commands, so that a process that only serves needs no permission to run scripts.
    """

    def __init__(self, context: RedisContext, caller: Caller) -> None:
        #: The name of this process, as in leases.
        self.process = context.process
        #: The other processes; none while Redis cannot be read.
        self.others: Sequence[ProcessFacts] = ()
        self._caller = caller
        self._names = context.names
        self._clock = context.clock
        self._failures = context.failures.record_of("announcing processes", vital=False)
        self._tasks = TaskSet()

    def start(self, describe: Callable[[], ProcessFacts]) -> None:
        """Begin to announce this process as `describe` returns it, and to read the others."""

        async def take_turn() -> None:
            await self._announce(describe())
            await self._read_others()

        self._tasks.start_periodic(take_turn, self._clock, _TURN_S)

    async def stop(self) -> None:
        """Announce that this process has ended."""
        if self._tasks:
            await self._tasks.cancel()
            key, process = self._names.processes_list_key, self.process
            await self._call(key, ("DEL", self._names.process_key(process)), ("ZREM", key, process))

    async def _announce(self, facts: ProcessFacts) -> None:
        key, own, now_ms = self._names.processes_list_key, self._names.process_key(self.process), self._clock.now_ms()
        await self._call(
            key,
            ("SET", own, encode_process(facts), "PX", round(_KEY_TTL_S * 1000)),
            ("ZADD", key, now_ms, self.process),
            ("ZREMRANGEBYSCORE", key, "-inf", now_ms - _LIST_TTL_S * 1000),  # their keys have expired long ago
            ("PEXPIRE", key, _LIST_TTL_S * 1000),
        )

    async def _read_others(self) -> None:
        key = self._names.processes_list_key
        (listed,) = await self._call(key, ("ZRANGE", key, -_MOST_READ, -1)) or [[]]
        others = [one for one in listed if one != self.process.encode() and one.isalnum()]
        reads = [("GETRANGE", self._names.process_key(one.decode()), 0, MAX_BYTES) for one in others]
        texts = await self._call(key, *reads) if reads else []
        self.others = [facts for text in texts if (facts := decode_process(text)) is not None]

    async def _call(self, key: str, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the replies to commands about keys on the server of `key`; an empty list if a command fails."""
        answers = await self._caller.call_all([Call(key, command) for command in commands])
        error = next((one for one in answers if isinstance(one, Exception)), None)
        if error is not None:
            self._failures.record_failure(reason_of(error))
            return []
        self._failures.record_success()
        return answers
