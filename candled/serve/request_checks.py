"""The checks of a client's requests: its token's access, its limits, and its budget of work."""

from typing import TYPE_CHECKING

from candled.model import PatternTopic, Topic
from candled.protocol.requests import LIMIT, TOO_MANY, RequestError, not_allowed
from candled.rooms.recipients import RecipientConnection
from candled.token_bucket import TokenBucket
from candled.transport.work_budget import REFUSED

if TYPE_CHECKING:
    from candled.access.grant import Grant

    from .connection_limiter import ClientLimits


def check_topic(grant: "Grant | None", topic: Topic | PatternTopic) -> None:
    """Check that a client's token allows the bars of a market, or the closed bars of a pattern.

    Raises:
        RequestError: it does not.
    """
    if grant is None:
        return
    if isinstance(topic, PatternTopic):
        if not grant.allows_pattern(topic.pattern):
            raise not_allowed(topic.pattern)
    elif not grant.allows_symbol(topic.market.symbol):
        raise not_allowed(topic.market.symbol)
    if not grant.allows_interval(str(topic.interval)):
        raise not_allowed(topic.interval)


def check_room_count(grant: "Grant | None", most: int, count: int) -> None:
    """Check that a client with `count` subscriptions may have another one.

    Raises:
        RequestError: it has reached `most`, the limit of the settings, or the limit of its token.
    """
    if grant is not None and grant.rooms:
        most = min(most, grant.rooms)
    if most and count >= most:
        raise RequestError(f"Too many subscriptions: at most {most} per connection", code=LIMIT)


def charge_work(connection: RecipientConnection, cost: float) -> float:
    """Charge a request; return the seconds that its answer has to wait.

    Raises:
        RequestError: the client or its address has used up its budget of work.
    """
    delay_s = connection.charge_work(cost)
    if delay_s == REFUSED:
        raise RequestError("Too much work: ask again later", code=TOO_MANY, temporary=True)
    return delay_s


def message_budget(
    budget: TokenBucket | None, limits: "ClientLimits", connection: RecipientConnection
) -> TokenBucket | None:
    """Return the budget of a client's messages, a new one if its limit has changed; None without a limit."""
    rate, grant = limits.max_messages_per_second, connection.grant
    if grant is not None and grant.messages:
        rate = min(rate or grant.messages, grant.messages)
    if budget is not None and budget.rate == rate:
        return budget
    return TokenBucket(rate, 2 * rate) if rate else None
