"""What one client has yet to receive, in bounded space however slowly it reads."""

from candled.protocol.requests import Topic

MOST_REPLIES = 256
MOST_BARS_WAITING = 3


class Outbox:
    """Pure. Replies keep their order; of a topic either a fresh `initial` waits, or the newest state of few bars."""

    __slots__ = ("_initials", "_replies", "_updates")

    def __init__(self) -> None:
        self._replies: list[bytes] = []
        self._initials: dict[Topic, None] = {}  # ordered
        self._updates: dict[Topic, dict[tuple[int, bool], bytes]] = {}  # by bar, and whether it is corrected

    def __bool__(self) -> bool:
        return bool(self._replies or self._initials or self._updates)

    def put_reply(self, frame: bytes) -> bool:
        """Queue an answer; False when the client lets too many lie."""
        if len(self._replies) >= MOST_REPLIES:
            return False
        self._replies.append(frame)
        return True

    def put_initial(self, topic: Topic) -> None:
        """Queue a fresh `initial`; it is made when its turn comes, and holds every update that waits."""
        self._updates.pop(topic, None)
        self._initials[topic] = None

    def put_update(self, topic: Topic, open_ms: int, frame: bytes, *, corrects: bool = False) -> bool:
        """Queue an update or a correction; False when so many wait that an `initial` should take their place.

        A correction goes behind an update of the same bar: who has not been shown a bar cannot correct it.
        """
        if topic in self._initials:  # which will hold it
            return True
        waiting = self._updates.setdefault(topic, {})
        waiting[open_ms, corrects] = frame
        return len(waiting) <= MOST_BARS_WAITING

    def drop_topic(self, topic: Topic) -> None:
        """Drop what waits of a topic."""
        self._updates.pop(topic, None)
        self._initials.pop(topic, None)

    def pop_next(self) -> bytes | Topic | None:
        """The next frame to send, or a topic whose `initial` is to be made and sent; None when empty."""
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
                self._updates[topic] = waiting  # to the end: topics take turns
            return frame
        return None

    def take_replies(self) -> list[bytes]:
        """Take all answers at once: a connection that is closed gets nothing else any more."""
        replies, self._replies = self._replies, []
        return replies
