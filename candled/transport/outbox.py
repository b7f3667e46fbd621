"""The queue of a slow client, in bounded space."""

from candled.model import Topic

MOST_REPLIES = 256
MOST_BARS_WAITING = 3


class Outbox:
    """Queued replies, updates and requested snapshots. Pure.

    Replies keep their order. For each topic, either an `initial` is queued or the newest state of a few bars.
    """

    __slots__ = ("_initials", "_replies", "_updates")

    def __init__(self) -> None:
        self._replies: list[bytes] = []
        self._initials: dict[Topic, None] = {}  # ordered
        # by topic, then by the bar's opening time and True for a correction
        self._updates: dict[Topic, dict[tuple[int, bool], bytes]] = {}

    @property
    def size_bytes(self) -> int:
        """The bytes of all queued frames. An `initial` has none before it is rendered."""
        updates = sum(len(frame) for frames in self._updates.values() for frame in frames.values())
        return updates + sum(map(len, self._replies))

    def put_reply(self, frame: bytes) -> bool:
        """Queue a reply; return False if too many are queued."""
        if len(self._replies) >= MOST_REPLIES:
            return False
        self._replies.append(frame)
        return True

    def put_initial(self, topic: Topic) -> None:
        """Queue an `initial`. It is rendered when it can be sent, and contains all queued updates."""
        self._updates.pop(topic, None)
        self._initials[topic] = None

    def has_initial(self, topic: Topic) -> bool:
        """Return True if the `initial` of a topic is queued."""
        return topic in self._initials

    def put_update(
        self, topic: Topic, open_ms: int, frame: bytes, *, corrects: bool = False, most: int | None = None
    ) -> bool:
        """Queue an update or a correction; return False if more than `most` of its topic are queued.

        The caller then drops them. Above the default of `most`, an `initial` is better than updates.

        A correction goes behind an update of the same bar, because the client must have a bar before it is corrected.
        """
        if topic in self._initials:  # the `initial` will contain it
            return True
        waiting = self._updates.setdefault(topic, {})
        waiting[open_ms, corrects] = frame
        return len(waiting) <= (most or MOST_BARS_WAITING)

    def drop_topic(self, topic: Topic) -> None:
        """Drop everything queued for a topic."""
        self._updates.pop(topic, None)
        self._initials.pop(topic, None)

    def pop_next(self) -> bytes | Topic | None:
        """Remove and return the next item; None if the queue is empty.

        It is a frame, or a topic whose `initial` is to be rendered and sent.
        """
        if self._replies:
            return self._replies.pop(0)
        if self._initials:
            topic = next(iter(self._initials))
            del self._initials[topic]
            return topic
        if self._updates:
            topic, waiting = next(iter(self._updates.items()))
            frame = waiting.pop(min(waiting))
            del self._updates[topic]
            if waiting:
                self._updates[topic] = waiting  # to the end, so that topics alternate
            return frame
        return None

    def take_replies(self) -> list[bytes]:
        """Remove and return all replies: a connection that is being closed gets nothing else."""
        replies, self._replies = self._replies, []
        return replies
