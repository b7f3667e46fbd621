"""Sections: read strictly, printed without secrets, set by environment."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, field_validator, model_validator

from candled import Duration, HttpUrl, Interval, Settings, Symbol, WebSocketUrl, setting
from candled.model import SYMBOL_FORM
from candled.settings import (
    ByteSize,
    Distinct,
    Size,
    TextOrTexts,
    Written,
    WrittenInterval,
    as_written,
    read_section,
    redacted,
    without_passwords,
)
from candled.settings.environment import apply_environment, keys_of, name_places
from candled.settings.yaml_text import NotYaml, read_yaml

WrittenSymbol = Annotated[Symbol, Written(SYMBOL_FORM, Symbol.parse, {})]


class Inner(Settings):
    depth: int = setting(1, help="how deep", ge=0, le=9)
    width: int = setting(1, help="how wide")


class Everything(Settings):
    text: str = setting("a", help="")
    whole: int = setting(1, help="", ge=0)
    number: float = setting(1.5, help="")
    flag: bool = setting(True, help="")
    wait: Duration = setting("1s", help="", ge=timedelta(0), le=timedelta(hours=1))
    age: Duration = setting("0s", help="")
    size: Size = setting("1KB", help="", le=ByteSize(10**15))
    interval: WrittenInterval = setting("5m", help="")
    symbols: Distinct[WrittenSymbol] = setting((), help="")
    names: list[str] = setting([], help="")
    hosts: TextOrTexts = setting("all", help="")
    files: Mapping[str, int] = setting({}, help="")
    kind: Literal["new", "old"] = setting("new", help="")
    address: WebSocketUrl = setting("wss://a.example/ws", help="")
    rest: HttpUrl = setting("https://a.example", help="")
    limit: int | None = setting(None, help="")
    code: str = Field("x", min_length=1, max_length=3, pattern="^[a-z]*$")
    ratio: float = Field(0.5, gt=0, lt=1)
    password: SecretStr = setting("", help="")
    token: SecretStr | None = setting(None, help="")
    codes: tuple[SecretStr, ...] = setting((), help="")
    pins: Mapping[str, SecretStr] = Field({}, max_length=1)
    inner: Inner = setting(Inner(), help="")


WEB_SOCKET = "expected a URL that begins with wss:// or ws://"


def read(raw: object) -> tuple[Everything, list[str]]:
    problems: list[str] = []
    return read_section(Everything, raw, "x", problems), problems


def problem(raw: object) -> str:
    _, (only,) = read(raw)
    return only


def test_nothing_set_is_all_defaults():
    assert read(None) == (Everything(), [])
    assert read({}) == (Everything(), [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text: b", {"text": "b"}),
        ("number: 2", {"number": 2.0}),
        ("flag: no", {"flag": False}),
        ("wait: 250ms", {"wait": timedelta(milliseconds=250)}),
        ("wait: 0.5s", {"wait": timedelta(milliseconds=500)}),
        ("wait: 5m", {"wait": timedelta(minutes=5)}),
        ("size: 512", {"size": 512}),
        ("size: 1.5MB", {"size": 1_500_000}),
        ("size: 1GiB", {"size": 2**30}),
        ("interval: 1D", {"interval": Interval.parse("1D")}),
        ("symbols: [BTC/USDT, ETH/USDT]", {"symbols": (Symbol("BTC", "USDT"), Symbol("ETH", "USDT"))}),
        ("files: {a: 1}", {"files": {"a": 1}}),
        ("kind: old", {"kind": "old"}),
        ("limit: 3", {"limit": 3}),
        ("limit:", {"limit": None}),
        ("inner: {depth: 9}", {"inner": Inner(depth=9)}),
        ("inner:", {"inner": Inner()}),
    ],
)
def test_a_yaml_scalar_becomes_a_value(text, expected):
    assert read(yaml.safe_load(text)) == (Everything(**expected), [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("texts: b", "x.texts: unknown setting, did you mean text?"),
        ("text: 7", "x.text: expected text, got 7: put it in quotes"),
        ("text: [a]", "x.text: expected text, got a list"),
        ("whole: true", "x.whole: expected a whole number, got true"),
        ("whole: 1.0", "x.whole: expected a whole number, got 1.0"),
        ("whole:", "x.whole: expected a whole number, got nothing"),
        ("whole: -1", "x.whole: at least 0, was -1"),
        ("number: .nan", "x.number: expected a number, got nan"),
        (f"number: 1{'0' * 400}", f"x.number: expected a number, got 1{'0' * 79}…"),
        ("flag: 1", "x.flag: expected true or false, got 1"),
        ("wait: -1s", "x.wait: at least 0s, was -1s"),
        ("wait: 2h", "x.wait: at most 1h, was 2h"),
        ("symbols: BTC/USDT", "x.symbols: expected a list, got 'BTC/USDT': write [BTC/USDT]"),
        ("symbols: [BTCUSDT]", f"x.symbols[0]: expected {SYMBOL_FORM}, got 'BTCUSDT'"),
        ("files: [a]", "x.files: expected a mapping, got a list"),
        ("files: {a: b}", "x.files.a: expected a whole number, got 'b'"),
        ("kind: odd", "x.kind: one of new, old, was odd"),
        ("symbols: [A/B, A/B]", "x.symbols: A/B is listed twice"),
        ("names: a", "x.names: expected a list, got 'a': write [a]"),
        ("names: {}", "x.names: expected a list, got a mapping"),
        ("hosts: 7", "x.hosts: expected text, got 7: put it in quotes"),
        ("hosts: [a, 7]", "x.hosts[1]: expected text, got 7: put it in quotes"),
        ("size: 2PB", "x.size: expected a size in bytes such as 256MB or 1GiB, got '2PB'"),
        ("size: 2000000GB", "x.size: at most 1000000GB, was 2000000GB"),
        ("code: ''", "x.code: should have at least 1 character, got ''"),
        ("code: abcd", "x.code: should have at most 3 characters, got 'abcd'"),
        ("code: A", "x.code: should match pattern '^[a-z]*$', got 'A'"),
        ("ratio: 0", "x.ratio: more than 0, was 0"),
        ("ratio: 1", "x.ratio: less than 1, was 1"),
        ("whole: 2024-01-01", "x.whole: expected a whole number, got '2024-01-01'"),
        (f"whole: 0x{'f' * 5000}", "x: a number is too long, or a text is not Unicode"),
        (r'text: "\ud800"', "x: a number is too long, or a text is not Unicode"),
        ("address: https://me:pw@a.example", f"x.address: {WEB_SOCKET}, got 'https://me:***@a.example'"),
        ("address: a.example/ws", f"x.address: {WEB_SOCKET}, got 'a.example/ws'"),
        ("address: 'wss:///ws'", f"x.address: {WEB_SOCKET}, got 'wss:///ws'"),
        ("address: 'wss://a:b/ws'", f"x.address: {WEB_SOCKET}, got 'wss://a:b/ws'"),
        ("address: 7", "x.address: expected text, got 7: put it in quotes"),
        ("rest: 'ws://a'", "x.rest: expected a URL that begins with https:// or http://, got 'ws://a'"),
        ("inner: {depth: 10}", "x.inner.depth: at most 9, was 10"),
        ("inner: 7", "x.inner: expected a mapping of settings, got 7"),
        ("[]", "x: expected a mapping of settings, got a list"),
    ],
)
def test_a_mistake_names_its_place_and_the_expected_value(text, expected):
    assert problem(yaml.safe_load(text)) == expected


def test_a_duration_without_a_unit_is_refused_with_a_hint():
    assert problem({"wait": 10}).endswith("a unit is missing, write 10s if seconds are meant")


def test_an_impossible_interval_has_the_reason():
    assert "does not divide a day" in problem({"interval": "7m"})


def test_a_duration_beyond_all_bounds_is_a_problem_too():
    assert problem({"wait": "999999999999d"}).endswith("too long")


def test_all_mistakes_are_reported_and_the_rest_is_read():
    everything, problems = read({"whole": "x", "number": "y", "text": "kept", "inner": {"depth": "z", "width": 5}})
    assert len(problems) == 3
    assert everything == Everything(text="kept", inner=Inner(width=5))


def test_keys_read_elsewhere_are_suggested():
    problems: list[str] = []
    read_section(Inner, {"symbol": 1}, "x", problems, beside=("symbols",))
    assert problems == ["x.symbol: unknown setting, did you mean symbols?"]


def test_the_sections_own_refusal_is_a_problem():
    class Ordered(Settings):
        low: int = setting(1, help="")
        high: int = setting(2, help="")
        inner: Inner = setting(Inner(), help="")
        name: str = setting("a", help="")

        @field_validator("name")
        @classmethod
        def _check_name(cls, name: str) -> str:
            if not name.islower():
                raise ValueError(f"no capitals\nin wss://me:hunter2@{name}")
            return name

        @model_validator(mode="after")
        def _check(self) -> "Ordered":
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    problems: list[str] = []
    assert read_section(Ordered, {"low": 3, "inner": {"depth": 10}, "name": "B"}, "x", problems) == Ordered()
    assert problems == [
        "x.inner.depth: at most 9, was 10",
        "x.name: no capitals in wss://me:***@B",
        "x: low is above high",
    ]


def test_a_mutable_default_is_not_shared():
    first, second = Everything(), Everything()
    assert first.files == second.files
    assert first.files is not second.files


# ---------------------------------------------------------------- YAML


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: &s {host: *s}", "nested too deeply, or an alias refers to a value that contains it"),
        ("server: &s [[*s]]", "nested too deeply, or an alias refers to a value that contains it"),
        ("[" * 3000, "nested too deeply"),
        ("{a: " * 3000, "nested too deeply"),
        ("\n".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" if i else "a0: &a0 {}" for i in range(40)),
         "too many values"),
        ("\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" if i else "a0: &a0 {k: 1}" for i in range(20)),
         "too many values"),
        ("!!bool maybe", "a value does not match its tag"),
        ("!!float ''", "a value does not match its tag"),
        ("a: 1\na: 2", "a is written twice"),
    ],
    ids=range(9),
)  # fmt: skip
def test_what_has_no_end_or_no_value_is_not_yaml(text, expected):
    with pytest.raises(NotYaml) as caught:
        read_yaml(text)
    assert str(caught.value) == expected


def test_an_error_of_yaml_names_the_line():
    with pytest.raises(NotYaml) as caught:
        read_yaml("a: 1\nb: {c: &x [*x]}")
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["*hunter2", "!hunter2", "!a!hunter2", "!<hunter2> x", "*hunter'2"])
def test_a_password_that_yaml_takes_for_an_alias_or_a_tag_is_not_repeated(text):
    with pytest.raises(NotYaml, match=r"needs quotes$|^expected") as caught:
        read_yaml(f"password: {text}")
    assert "hunter" not in str(caught.value)


# ---------------------------------------------------------------- printing

durations = st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=1))


@pytest.mark.slow
@given(
    st.builds(
        Everything,
        text=st.text().filter(lambda text: "://" not in text),
        whole=st.integers(min_value=0),
        number=st.floats(allow_nan=False, allow_infinity=False),
        flag=st.booleans(),
        wait=durations,
        size=st.builds(ByteSize, st.integers(min_value=0, max_value=10**15)),
        files=st.dictionaries(st.text(), st.integers()),
        limit=st.none() | st.integers(),
    )
)
def test_what_is_printed_reads_back(everything):
    printed = yaml.safe_dump(as_written(everything, redact=False))
    assert read(yaml.safe_load(printed)) == (everything, [])


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(days=30), "30d"),
        (timedelta(seconds=90), "90s"),
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(microseconds=1), "0.001ms"),
    ],
)
def test_durations_print_in_the_largest_unit_that_divides_them(duration, text):
    assert as_written(Everything(age=duration))["age"] == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:hunter2@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:p@ss/w:rd@host/db", "postgresql://user:***@host/db"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://host/db?user=u&password=hunter2&sslmode=require", "postgresql://host/db?user=u&password=***&sslmode=require"),
        ("sqlite:///candled.db", "sqlite:///candled.db"),
        ("wss://host:443/path", "wss://host:443/path"),
        ("wss://host/ws?token=hunter2&depth=5", "wss://host/ws?token=***&depth=5"),
        ("wss://host/ws?depth=5&access_token=hunter2", "wss://host/ws?depth=5&access_token=***"),
        ("https://host/?api_key=hunter2", "https://host/?api_key=***"),
        ("https://host/?apikey=hunter2&API-Key=hunter2", "https://host/?apikey=***&API-Key=***"),
        ("https://host/?key=hunter2&secret=hunter2", "https://host/?key=***&secret=***"),
        ("https://host/?client_secret=hunter2;listenKey=x", "https://host/?client_secret=***"),
        ("https://host/?keyword=candles", "https://host/?keyword=candles"),
    ],
)  # fmt: skip
def test_the_password_in_a_url_is_stars(url, shown):
    assert without_passwords(url) == shown
    assert as_written(Everything(text=url))["text"] == shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "OSError: no answer from wss://me:hunter2@host/ws: gone",
            "OSError: no answer from wss://me:***@host/ws: gone",
        ),
        ("https://h/x?token=hunter2 answered 403", "https://h/x?token=*** answered 403"),
        ("postgresql:/me:hunter2@host/db", "postgresql:/me:***@host/db"),
        ("me:hunter2@host/db", "me:***@host/db"),
        ("host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"),
        ("cannot connect to https://host:443/a", "cannot connect to https://host:443/a"),
    ],
)
def test_a_message_is_shown_without_the_passwords_it_quotes(message, shown):
    assert redacted(message) == shown


def test_a_secret_is_stars_and_an_empty_one_is_empty():
    assert as_written(Everything(password="hunter2"))["password"] == "***"
    assert as_written(Everything())["password"] == ""
    assert as_written(Everything(password="hunter2"), redact=False)["password"] == "hunter2"
    several = Everything(token="hunter2", codes=("hunter2",), pins={"a": "hunter2"})
    assert "hunter2" not in repr(as_written(several)) + repr(several)


@pytest.mark.parametrize(
    "raw",
    [
        {"password": 1234567},
        {"password": ["1234567"]},
        {"token": 1234567},
        {"codes": "1234567"},
        {"codes": [1234567]},
        {"pins": {"a": 1234567}},
        {"pins": "1234567"},
        {"pins": {"a": "1234567", "b": "1234567"}},
        {"whole": "a://b:1234567@c"},
        {"whole": "b:1234567@c"},
        {"whole": "a://c/?token=1234567"},
        {"symbols": "a://b:1234567@c"},
        {"inner": "password=1234567"},
    ],
)
def test_a_mistake_does_not_print_a_password(raw):
    assert "1234567" not in problem(raw)


# ---------------------------------------------------------------- environment


def applied(env: Mapping[str, str], raw: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []
    return apply_environment(raw or {}, env, "APP_", keys_of(Everything), problems), problems


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("APP_WHOLE", "7", {"whole": 7}),
        ("app_whole", "7", {"whole": 7}),
        ("APP_SYMBOLS", "[BTC/USDT]", {"symbols": ["BTC/USDT"]}),
        ("APP_INNER__DEPTH", "3", {"inner": {"depth": 3}}),
        ("APP_INNER", "{depth: 3}", {"inner": {"depth": 3}}),
        ("APP_TEXT", "2024-99-99", {"text": "2024-99-99"}),
        ("APP_TEXT", "12", {"text": "12"}),
        ("APP_TEXT", "''", {"text": ""}),
        ("APP_TEXT", "", {}),
        ("APP_WHOLE", " ", {}),
        ("APP_INNER", "", {}),
        ("APP_NO_SUCH_SETTING", "", {}),
        ("APP_TEXT", "@odd", {"text": "@odd"}),
        ("APP_TEXT", "'quoted'", {"text": "quoted"}),
        ("OTHER_WHOLE", "7", {}),
    ],
)
def test_a_variable_sets_a_key(name, text, expected):
    assert applied({name: text}) == (expected, [])


def test_a_variable_goes_over_the_file_and_leaves_it_alone():
    raw = {"inner": {"depth": 1, "width": 2}}
    assert applied({"APP_INNER__DEPTH": "3"}, raw) == ({"inner": {"depth": 3, "width": 2}}, [])
    assert raw == {"inner": {"depth": 1, "width": 2}}


def test_a_variable_of_a_key_goes_over_that_of_its_section():
    env = {"APP_INNER__DEPTH": "3", "APP_INNER": "{depth: 1, width: 2}"}
    assert applied(env) == ({"inner": {"depth": 3, "width": 2}}, [])


def test_an_underscore_matches_a_hyphen():
    problems: list[str] = []
    kinds = {("bitget-futures",): None, ("bitget-futures", "market"): str}
    assert apply_environment({}, {"APP_BITGET_FUTURES__MARKET": "x"}, "APP_", kinds, problems) == {
        "bitget-futures": {"market": "x"}
    }
    assert problems == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("APP_WHOLES", "APP_WHOLES: no such setting, did you mean APP_WHOLE?"),
        ("APP_INNER_DEPTH", "APP_INNER_DEPTH: no such setting, did you mean APP_INNER__DEPTH?"),
        ("APP_DEPTH", "APP_DEPTH: no such setting, did you mean APP_INNER__DEPTH?"),
        ("APP_QQQQQQQQQQQQ", "APP_QQQQQQQQQQQQ: no such setting"),
    ],
)
def test_a_variable_that_sets_nothing_is_a_problem(name, expected):
    assert applied({name: "1"})[1] == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[1", "2024-99-99", "[" * 3000, "&a [*a]", "\udc80"])
def test_a_variable_that_is_not_yaml_is_a_problem(text):
    assert applied({"APP_WHOLE": text}) == (
        {},
        ["APP_WHOLE: expected YAML, for instance a number, a text or [a, list]"],
    )


def named(problem: str, *names: str) -> str:
    """The problem as it is told when those variables are set."""
    (named,) = name_places([problem], dict.fromkeys(names, "1"), "APP_", keys_of(Everything))
    return named


@pytest.mark.parametrize(
    ("problem", "names", "expected"),
    [
        ("whole: at least 0, was -1", ["APP_WHOLE"], "whole (APP_WHOLE): at least 0, was -1"),
        ("whole: at least 0, was -1", ["app_whole"], "whole (app_whole): at least 0, was -1"),
        ("whole: at least 0, was -1", ["APP_NUMBER"], "whole: at least 0, was -1"),
        ("symbols[1]: odd", ["APP_SYMBOLS"], "symbols[1] (APP_SYMBOLS): odd"),
        ("inner.depth: at most 9", ["APP_INNER"], "inner.depth (APP_INNER): at most 9"),
        ("inner.depth: at most 9", ["APP_INNER", "APP_INNER__DEPTH"], "inner.depth (APP_INNER__DEPTH): at most 9"),
        ("inner.depth: at most 9", ["APP_INNER__WIDTH"], "inner.depth: at most 9"),
        (
            "inner.depth: at most inner.width",
            ["APP_INNER__WIDTH"],
            "inner.depth: at most inner.width (APP_INNER__WIDTH)",
        ),
        ("sizes: unknown setting", ["APP_SIZE"], "sizes: unknown setting"),
    ],
)
def test_a_problem_names_the_variable_that_set_the_key(problem, names, expected):
    assert named(problem, *names) == expected


def test_an_empty_variable_is_not_named():
    assert name_places(["whole: odd"], {"APP_WHOLE": ""}, "APP_", keys_of(Everything)) == ["whole: odd"]
