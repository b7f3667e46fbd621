"""Recordings from files of other programs: ccxt's static tests, logs of cryptofeed, and samples of libraries.

ccxt has its files in `ts/src/test/static/`: `response` has answers over REST, `request` the addresses of requests, and
`ws` the frames of a WebSocket. The object of a single test, cut out of such a file, is read too, and so are frames, one
per line.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from candled.model import MINUTE, Interval, Symbol

from .recording import VERSION, Call, Event, Header, Opened, Received, Recording, RecordingError, Request, Sent

_METHODS = ("fetchOHLCV", "watchOHLCV")
_DEFAULT_LIMIT = 100
_NO_ANSWER = "the source has no answer"
_LOG_LINE = re.compile(r"(?:(?P<url>wss?://\S+) (?P<kind><->|<-) )?(?P<at>\d{9,10}(?:\.\d+)?)(?:: (?P<text>.*))?")
_PLACEHOLDER = re.compile(r"\"?\|(\d+)\|\"?")


class _Test(msgspec.Struct):
    """A test of ccxt: its input, and a request, an answer, or frames."""

    #: symbol, interval, the first time in milliseconds, and the number of rows; each may be missing or null.
    input: list[Any] = []
    ccxt_input: list[Any] = []
    url: str | None = None
    #: The body of a request.
    output: Any = None
    answer: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="httpResponse")
    sent: list[msgspec.Raw] = msgspec.field(default_factory=list, name="sentMessages")
    messages: list[msgspec.Raw] = []

    @property
    def symbol(self) -> str:
        """The symbol of the input; empty if it has none."""
        given = [*self.input, *self.ccxt_input]
        return given[0] if given and isinstance(given[0], str) else ""


class _Static(msgspec.Struct):
    """A static file of ccxt."""

    exchange: str
    #: The tests by their methods.
    methods: dict[str, msgspec.Raw]


def convert_files(
    texts: Sequence[tuple[str, str]], *, exchange: str = "", symbol: Symbol | None = None, match: str = ""
) -> Recording:
    """Return a recording with the candles of one symbol, from files by their names.

    `exchange` and `symbol` are needed where the files do not name them. `match` is a text: frames that arrived without
    it are left out, because a log may have those of other symbols and topics.

    Raises:
        RecordingError: a file is in no known form, or has nothing about the symbol.
    """
    tests: list[_Test] = []
    events: list[Event] = []
    for name, text in texts:
        if text.lstrip().startswith("{"):
            named, found = _read_ccxt(name, text)
            exchange = exchange or named
            tests += found
        elif text.startswith(("GET\n", "POST\n")):
            events.append(_read_rest_sample(name, text))
        elif re.match(r"wss?://\S+ <-> \d", text):
            events += _read_log(name, text)
        elif text.startswith("> "):
            events += _read_stream_sample(text)
        else:
            raise RecordingError(f"{name}: expected a file of ccxt or cryptofeed, or a sample, got {text[:60]!r}")
    chosen = _choose_symbol({test.symbol for test in tests if test.symbol}, symbol)
    events += _convert_tests([test for test in tests if test.symbol in ("", str(chosen))])
    if not exchange:
        raise RecordingError("expected --exchange with the name of the exchange, because the files have none")
    kept = [event for event in events if not isinstance(event, Received) or match in (event.text or "")]
    if not kept:
        raise RecordingError(f"expected frames or answers about {chosen}, got none")
    source = "converted from " + ", ".join(name for name, _ in texts)
    return Recording(Header(version=VERSION, exchange=exchange, symbol=str(chosen), source=source), tuple(kept))


def _choose_symbol(found: set[str], symbol: Symbol | None) -> Symbol:
    if symbol is not None:
        return symbol
    if len(found) == 1:
        return Symbol.parse(*found)
    raise RecordingError(f"expected --symbol, because the files have {', '.join(sorted(found)) or 'no symbols'}")


# ---------------------------------------------------------------- ccxt


def _read_ccxt(name: str, text: str) -> tuple[str, list[_Test]]:
    """Return the name of the exchange, and the tests about candles."""
    lines = [line for line in text.splitlines() if line]
    try:
        if len(lines) > 1 and all(line[0] == "{" and line[-1] == "}" for line in lines):
            return "", [_Test(messages=[msgspec.Raw(line.encode()) for line in lines])]
        keys = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        if not keys.keys() & {"methods", "messages", "httpResponse", "url"}:
            return "", [_Test(messages=[msgspec.Raw(text.strip().encode())])]
        if "methods" not in keys:
            return "", [msgspec.json.decode(text, type=_Test)]
        static = msgspec.json.decode(text, type=_Static)
        lists = [static.methods[method] for method in _METHODS if method in static.methods]
        return static.exchange, [test for one in lists for test in msgspec.json.decode(one, type=list[_Test])]
    except msgspec.DecodeError as error:
        raise RecordingError(f"{name}: expected a file of ccxt, or frames of JSON, one a line: {error}") from None


def _convert_tests(tests: Iterable[_Test]) -> Iterator[Event]:
    """Yield the lines of tests. A request and an answer with the same input become one line."""
    requests: dict[str, _Test] = {}
    for number, test in enumerate(tests, 1):
        if test.messages:
            yield from _convert_frames(number, test)
            continue
        if not test.answer and not test.url:
            continue
        same = requests.setdefault(str((*test.input, *test.ccxt_input)), test)
        same.url, same.output = same.url or test.url, same.output or test.output
        same.answer = same.answer or test.answer
    for number, test in enumerate(requests.values(), 1):
        yield from _convert_request(number, test)


def _convert_frames(number: int, test: _Test) -> Iterator[Event]:
    yield Opened(connection=number, url=test.url or "")
    for sent in test.sent:
        yield Sent(connection=number, text=_text_of(sent))
    for message in test.messages:
        yield Received(connection=number, text=_text_of(message))


def _text_of(raw: msgspec.Raw) -> str:
    """Return a frame as text. A JSON string contains the frame."""
    text = bytes(raw).decode()
    return str(msgspec.json.decode(text)) if text.startswith('"') else text


def _convert_request(number: int, test: _Test) -> Iterator[Event]:
    call = _call_of(number, [*test.input, *test.ccxt_input])
    if call is not None:
        yield call
    body = test.output if isinstance(test.output, str) else msgspec.json.encode(test.output).decode()
    has_body = test.output is not None
    yield Request(
        call=0 if call is None else call.number,
        method="POST" if has_body else "GET",
        url=test.url or "",
        body=body if has_body else "",
        status=200 if test.answer else 0,
        answer=bytes(test.answer).decode() or _NO_ANSWER,
    )


def _call_of(number: int, given: Sequence[Any]) -> Call | None:
    """Return the call that asks for the same rows; None without a first time, or for an interval of months."""
    interval, since_ms, limit = (*given[1:4], None, None, None)[:3]
    try:
        length = MINUTE if interval is None else Interval.parse(re.sub("[dw]", lambda one: one[0].upper(), interval))
    except (ValueError, TypeError):
        return None
    if not isinstance(since_ms, int):
        return None
    start_ms = -(-since_ms // length.ms) * length.ms
    end_ms = start_ms + (limit if isinstance(limit, int) else _DEFAULT_LIMIT) * length.ms
    if length == MINUTE:
        return Call(number=number, method="fetch_history", start_ms=start_ms, end_ms=end_ms)
    return Call(number=number, method="fetch_bars", start_ms=start_ms, end_ms=end_ms, interval=str(length))


# ---------------------------------------------------------------- logs and samples


def _read_log(name: str, text: str) -> Iterator[Event]:
    """Yield the lines of a log of cryptofeed: `URL <-> TIME`, `URL <- TIME: sent` and `TIME: received`."""
    connection = 0
    for number, line in enumerate(text.splitlines(), 1):
        found = _LOG_LINE.fullmatch(line)
        if found is None:
            raise RecordingError(f"{name}:{number}: expected a line of cryptofeed, got {line[:60]!r}")
        at_ms, frame = round(float(found["at"]) * 1000), found["text"] or ""
        if found["kind"] == "<->":
            connection += 1
            yield Opened(at_ms=at_ms, connection=connection, url=found["url"])
        elif found["kind"] == "<-":
            yield Sent(at_ms=at_ms, connection=connection, text=frame)
        else:
            yield Received(at_ms=at_ms, connection=connection, text=frame)


def _read_stream_sample(text: str) -> Iterator[Event]:
    """Yield the frames of a sample: `>` begins a sent frame, `<` a reply, and `=` a frame with data."""
    yield Opened(connection=1, url="")
    for part in re.split(r"^(?=[><=] ?)", text, flags=re.MULTILINE):
        frame = _PLACEHOLDER.sub(r"\1", part[1:].strip())
        if part.startswith(">"):
            yield Sent(connection=1, text=frame)
        elif part:
            yield Received(connection=1, text=frame)


def _read_rest_sample(name: str, text: str) -> Request:
    """Return the request of a sample: method, path, a line that does not matter, and the answer."""
    parts = text.split("\n", 3)
    if len(parts) < 4:
        raise RecordingError(f"{name}: expected a sample of a request in four lines or more, got {len(parts)}")
    method, path, _, answer = parts
    return Request(method="POST" if method == "POST" else "GET", url=path, status=200, answer=answer)
