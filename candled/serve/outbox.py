"""What one client has yet to receive, in bounded space however slowly it reads."""

from collections import deque

from candled.rooms.protocol import Topic

MOST_REPLIES = 256
MOST_BARS_WAITING = 3


class Outbox:
    """Pure. Replies keep their order; of a topic either a fresh `initial` waits, or the newest state of few bars."""

    def __init__(self) -> None:
        self._replies: deque[str] = deque()
        self._initials: dict[Topic, None] = {}  # ordered
        self._updates: dict[Topic, dict[int, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._replies or self._initials or self._updates)

    def reply(self, text: str) -> bool:
        """Queue an answer; False when the client lets too many lie."""
        if len(self._replies) >= MOST_REPLIES:
            return False
        self._replies.append(text)
        return True

    def initial(self, topic: Topic) -> None:
        """Queue a fresh `initial`; it is made when its turn comes, and holds every update that waits."""
        self._updates.pop(topic, None)
        self._initials[topic] = None

    def update(self, topic: Topic, open_ms: int, text: str) -> bool:
        """Queue an update; False when so many bars wait that an `initial` should take their place."""
        waiting = self._updates.setdefault(topic, {})
        waiting[open_ms] = text
        return len(waiting) <= MOST_BARS_WAITING

    def forget(self, topic: Topic) -> None:
        """Drop what waits of a topic."""
        self._updates.pop(topic, None)
        self._initials.pop(topic, None)

    def pop(self) -> str | Topic | None:
        """The next text to send, or a topic whose `initial` is to be made and sent; None when empty."""
        if self._replies:
            return self._replies.popleft()
        if self._initials:
            topic = next(iter(self._initials))
            del self._initials[topic]
            return topic
        if self._updates:
            topic, waiting = next(iter(self._updates.items()))
            text = waiting.pop(min(waiting))
            del self._updates[topic]
            if waiting:
                self._updates[topic] = waiting  # to the end: topics take turns
            return text
        return None
