"""The checks of a client's requests: its token's access, its limits, and its budget of work."""

from typing import TYPE_CHECKING

from candled.model import Interval, PatternTopic, Topic
from candled.protocol.requests import (
    LIMIT,
    TOO_MANY,
    GetHistory,
    RequestError,
    Subscribe,
    SubscribePattern,
    not_allowed,
)
from candled.rooms.recipients import RecipientConnection
from candled.transport.work_budget import REFUSED

if TYPE_CHECKING:
    from candled.access.grant import Grant


def check_topic(grant: "Grant | None", topic: Topic) -> None:
    """Check that a client's token allows the bars of a market.

    Raises:
        RequestError: it does not.
    """
    if grant is not None and not grant.allows_symbol(topic.market.symbol):
        raise not_allowed(topic.market.symbol)
    _check_interval(grant, topic.interval)


def check_pattern(grant: "Grant | None", topic: PatternTopic) -> None:
    """Check that a client's token allows the closed bars of a pattern.

    Raises:
        RequestError: it does not.
    """
    if grant is not None and not grant.allows_pattern(topic.pattern):
        raise not_allowed(topic.pattern)
    _check_interval(grant, topic.interval)


def _check_interval(grant: "Grant | None", interval: Interval) -> None:
    if grant is not None and not grant.allows_interval(str(interval)):
        raise not_allowed(interval)


def check_room_count(grant: "Grant | None", most: int, count: int) -> None:
    """Check that a client with `count` subscriptions may have another one.

    Raises:
        RequestError: it has reached `most`, the limit of the settings, or the limit of its token.
    """
    if grant is not None and grant.rooms:
        most = min(most, grant.rooms)
    if most and count >= most:
        raise RequestError(f"Too many subscriptions: at most {most} per connection", code=LIMIT)


def charge_work(
    connection: RecipientConnection, cost: float, request: Subscribe | SubscribePattern | GetHistory
) -> float:
    """Charge a request; return the seconds that its answer has to wait.

    Raises:
        RequestError: the client or its address has used up its budget of work.
    """
    delay_s = connection.charge_work(cost)
    if delay_s == REFUSED:
        error = RequestError("Too much work: ask again later", code=TOO_MANY, temporary=True)
        error.request_id = request.id
        raise error
    return delay_s
