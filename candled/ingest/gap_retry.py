"""Gaps on the exchange's side: why minutes are missing, and when to ask for them again."""

from dataclasses import replace
from typing import Literal

from candled.exchange import Exchange
from candled.model import Gap

Absence = Literal["exchange_outage", "no_trades"]

_DAY_MS = 86_400_000
# The waits before the exchange is asked again for missing minutes, one per unsuccessful answer, and the wait after
# those. Requests never stop, because an exchange that returns nothing may be wrong. If it does not publish minutes
# without trades, every thin market has hundreds of missing minutes a day: they are requested a few times at first, and
# later many of them in one request.
_RETRY_MS: dict[str, tuple[int, ...]] = {
    "exchange_outage": (60_000, 600_000, 3_600_000, 21_600_000, 43_200_000, *[_DAY_MS] * 7),
    "no_trades": (600_000, 21_600_000, *[_DAY_MS] * 7),
    "invalid": (60_000, 300_000, 1_800_000, 7_200_000, 21_600_000),
    "unconfirmed": (60_000, 600_000, 3_600_000),
    "beyond_history": (_DAY_MS, 7 * _DAY_MS),
}
_ENDLESS_MS = {
    "exchange_outage": 30 * _DAY_MS,
    "no_trades": 30 * _DAY_MS,
    "invalid": _DAY_MS,
    "unconfirmed": 21_600_000,
    "beyond_history": 30 * _DAY_MS,
}


def absence_of(exchange: Exchange) -> Absence:
    """Return the reason for minutes that an exchange does not have."""
    return "exchange_outage" if exchange.publishes_empty_candles else "no_trades"


def make_gap(start_ms: int, end_ms: int, reason: str, attempts: int, now_ms: int) -> Gap:
    """Return a gap after `attempts` answers without its minutes."""
    retry_ms = retry_time(reason, attempts, now_ms)
    return Gap(start_ms=start_ms, end_ms=end_ms, reason=reason, attempts=attempts, retry_ms=retry_ms)


def retry_time(reason: str, attempts: int, now_ms: int) -> int:
    """Return when to ask again after `attempts` answers without a minute."""
    waits_ms = _RETRY_MS[reason]
    return _shared_time(now_ms, waits_ms[attempts - 1] if attempts <= len(waits_ms) else _ENDLESS_MS[reason])


def postpone(known_gap: Gap, now_ms: int) -> Gap:
    """Reschedule a gap after an answer that is no evidence, with the same wait as before."""
    if known_gap.retry_ms is None or known_gap.retry_ms > now_ms:
        return known_gap
    return replace(known_gap, retry_ms=retry_time(known_gap.reason, known_gap.attempts, now_ms))


def _shared_time(now_ms: int, wait_ms: int) -> int:
    """Return a time one to one and a half waits from now.

    It is rounded, so that minutes missed at different times come due together and need only one request.
    """
    step_ms = wait_ms // 2
    return -(-(now_ms + wait_ms) // step_ms) * step_ms
