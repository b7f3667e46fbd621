"""Settings as pydantic models: read strictly from YAML and environment, printed without secrets."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, TypeGuard, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
    Tag,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema, to_jsonable_python

from candled.model import Interval, Symbol
from candled.model.texts import SECRET_NAMES
from candled.symbol_pattern import SYMBOL_PATTERN_FORM, SYMBOL_PATTERN_PATTERN, SymbolPattern

from .yaml_text import join_path

STARS = "***"
_DURATION = r"(-?[0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)"
_UNIT_US = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}
_SIZE = r"([0-9]+(?:\.[0-9]+)?)(B|KB|MB|GB|KiB|MiB|GiB)"
_SIZES = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "KB": 10**3, "B": 1}
# Up to the last @: a password may contain an unescaped @.
_URL_PASSWORD = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://[^:/?#@]*:).*@", re.DOTALL)
_QUERY_SECRET = re.compile(f"([?&;#]{SECRET_NAMES}=)[^&]*", re.IGNORECASE)
# The same inside a sentence, and in a misspelt URL or libpq string "host=… password=…".
_QUOTED_PASSWORD = re.compile(r"((?:[a-z][a-z0-9+.-]*:/*)?[^\s:/?#@]*:)[^\s]*@", re.IGNORECASE)
_QUOTED_SECRET = re.compile(rf"((?:^|[\s?&;#]){SECRET_NAMES}=)[^\s&]*", re.IGNORECASE)


class Settings(BaseModel):
    """A section of settings: a pydantic model whose fields are made with `setting`.

    Values are not converted: `7` is no text, and `"7"` no number. An unknown key is a mistake.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, hide_input_in_errors=True
    )


def setting(default: Any, help: str, *, ge: Any = None, le: Any = None, min_length: int | None = None) -> Any:
    """Declare a key by pydantic's `Field`; the default may be written as in YAML, such as `"10s"`."""
    return Field(default, description=help, ge=ge, le=le, min_length=min_length)


Section = TypeVar("Section", bound=Settings)


# ---------------------------------------------------------------- types


@dataclass(frozen=True, slots=True)
class Written:
    """Annotate a type with the form of its values in YAML, for reading, for messages and for JSON Schema."""

    #: completes "expected …"
    expected: str
    #: converts a YAML value; raises ValueError, if possible with a hint, or TypeError
    read: Callable[[Any], Any]
    #: the JSON Schema of the YAML values
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def validate(raw: object) -> Any:
            # A value that has the type already is right, except text, whose form counts. The inner schema refuses other
            # types.
            if isinstance(source, type) and isinstance(raw, source) != (source is str):
                return raw
            try:
                return self.read(raw)
            except (TypeError, ValueError) as error:
                hint = str(error) if isinstance(error, ValueError) else ""
                context = {"what": self.expected, "hint": "" if hint.startswith("expected") else hint}
                raise PydanticCustomError("expected", "expected {what}", context) from None

        has_limits = source in (str, timedelta, ByteSize)
        inner = handler(source) if has_limits else core_schema.any_schema()
        return core_schema.no_info_before_validator_function(validate, inner)

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        return dict(self.schema)


def _text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def matching(pattern: str, expected: str) -> Written:
    """Annotate text that a regular expression has to match as a whole."""
    return Written(expected, lambda raw: _match(pattern, raw)[0], _text(pattern))


def _match(pattern: str, raw: Any) -> re.Match[str]:
    if match := re.fullmatch(pattern, raw):
        return match
    raise ValueError


def refused(problem: str) -> PydanticCustomError:
    """Return an error for a validator to raise. `problem` is shown as it is, so it must not contain a password."""
    return PydanticCustomError("refused", "{problem}", {"problem": problem})


class ByteSize(int):
    """A number of bytes; written `512`, `256MB` (10^6) or `256MiB` (2^20)."""

    def __str__(self) -> str:
        unit = next(unit for unit, size in _SIZES.items() if self % size == 0)
        return f"{int(self) // _SIZES[unit]}{unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.is_instance_schema(cls)


def parse_duration(raw: Any) -> timedelta:
    """Return a duration written with a unit, such as `90d`.

    Raises:
        ValueError: it has another form.
    """
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        raise ValueError(f"a unit is missing, write {raw}s if seconds are meant")
    number, unit = _match(_DURATION, raw).groups()
    microseconds = Decimal(number) * _UNIT_US[unit]
    if microseconds != int(microseconds):
        raise ValueError("finer than a microsecond")
    try:
        return timedelta(microseconds=int(microseconds))
    except OverflowError:
        raise ValueError("too long") from None


def _read_size(raw: Any) -> ByteSize:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return ByteSize(raw)
    number, unit = _match(_SIZE, raw).groups()
    return ByteSize(Decimal(number) * _SIZES[unit])


def _url(*schemes: str) -> Written:
    """Annotate the URL of a host, which is kept as it is written."""

    def read(raw: str) -> str:
        try:
            parts = urlsplit(raw)
            valid = parts.scheme in schemes and parts.hostname and parts.port != 0
        except ValueError:  # a port or an IPv6 address that is none
            valid = False
        if not valid:
            raise ValueError
        return raw

    expected = f"a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    return Written(expected, read, _text(f"(?:{'|'.join(schemes)})://.*"))


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; refuse duplicates."""
    texts = [str(value) for value in values]
    if twice := [text for text in dict.fromkeys(texts) if texts.count(text) > 1]:
        raise refused(f"{', '.join(twice)} is listed twice")
    return values


_Item = TypeVar("_Item")
_Texts = Annotated[str, Tag("text")] | Annotated[tuple[str, ...], Tag("list")]
_SIZE_SCHEMA = {"anyOf": [_text(_SIZE), {"type": "integer", "minimum": 0}]}

Duration = Annotated[
    timedelta, Written("a duration such as 250ms, 10s, 5m, 2h or 30d", parse_duration, _text(_DURATION))
]
Size = Annotated[ByteSize, Written("a size in bytes such as 256MB or 1GiB", _read_size, _SIZE_SCHEMA)]
WrittenPattern = Annotated[
    SymbolPattern, Written(SYMBOL_PATTERN_FORM, SymbolPattern.parse, _text(SYMBOL_PATTERN_PATTERN))
]
WrittenInterval = Annotated[
    Interval, Written("an interval such as 5m or 1D", Interval.parse, _text("[1-9][0-9]*[mhDW]"))
]
WebSocketUrl = Annotated[str, _url("wss", "ws")]
HttpUrl = Annotated[str, _url("https", "http")]
#: a list that has nothing twice
Distinct = Annotated[tuple[_Item, ...], AfterValidator(distinct)]
TextOrTexts = Annotated[_Texts, Discriminator(lambda raw: "list" if isinstance(raw, list | tuple) else "text")]


# ---------------------------------------------------------------- reading


def read_section(
    cls: type[Section], raw: object, path: str, problems: list[str], *, beside: Iterable[str] = ()
) -> Section:
    """Read a mapping of YAML values into a section; None means that nothing is set.

    Every mistake adds a line to `problems` that begins with the path of its key. The key then has its default. Keys
    named in `beside` are read elsewhere: an unknown key is compared with them too.
    """
    try:
        tree = json.loads(json.dumps({} if raw is None else raw, default=str, ensure_ascii=False).encode())
    except ValueError:
        problems.append(f"{path or 'settings'}: a number is too long, or a text is not Unicode")
        return cls()
    while True:
        try:
            return cls.model_validate_json(json.dumps(tree))  # as JSON: lists become tuples, and nothing else converts
        except ValidationError as error:
            mistakes = [_Mistake(cls, tree, path, found) for found in error.errors(include_url=False)]
        mistakes.sort(key=lambda one: one.order)
        problems += [f"{one.path}: {one.problem(beside)}" for one in mistakes if not one.is_harmless]
        if not all(one.holder for one in mistakes):
            return cls() if tree != {} else cls.model_construct()  # even the defaults are wrong
        for one in mistakes:
            one.holder.pop(one.key, None)


def is_section(kind: Any) -> TypeGuard[type[Settings]]:
    """Return True for the annotation of a section."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def holds_secret(field: FieldInfo | None) -> bool:
    """Return True for a key of one or several `SecretStr`."""
    return field is not None and "SecretStr" in repr(field.annotation)


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    **dict.fromkeys(("float_type", "finite_number"), "a number"),
    "bool_type": "true or false",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


class _Mistake:
    """A mistake that pydantic found, with its place in the tree and in the models."""

    def __init__(self, cls: type[Settings], tree: Any, path: str, found: ErrorDetails) -> None:
        self.kind, self.raw, self.context = found["type"], found["input"], found.get("ctx", {})
        self.message = found["msg"]
        #: the innermost mapping of the tree that has the mistake, and its key there; empty for the whole tree
        self.holder: dict[str, Any] = {}
        self.key = ""
        #: sorts mistakes in the order of the file
        self.order: tuple[int, ...] = ()
        self.field: FieldInfo | None = None
        self.known: Iterable[str] = ()
        kind: Any = cls
        for step in found["loc"]:  # some name a member of a union, which the tree does not have
            is_key = is_section(kind)
            if is_key:
                self.known = kind.model_fields
                self.field = kind.model_fields.get(step)
                kind = self.field and self.field.annotation
            if isinstance(tree, list) and isinstance(step, int):
                self.order += (step,)
                path, tree = f"{path}[{step}]", tree[step]
            elif isinstance(tree, dict) and step in tree:
                self.order += (list(tree).index(step),)
                path, tree, self.holder, self.key = join_path(path, step), tree[step], tree, str(step)
            elif is_key:  # the default is wrong
                path, tree = join_path(path, step), None
        self.path = path or "settings"

    @property
    def is_harmless(self) -> bool:
        """True for a section that is null, or a list that is too short only because its wrong items were dropped."""
        if self.kind == "too_short":
            return bool(len(self.raw) >= self.context["min_length"])
        return self.kind == "model_type" and self.raw is None

    def problem(self, beside: Iterable[str]) -> str:
        """Return the mistake in candled's words, without passwords."""
        if self.kind == "extra_forbidden":
            return f"unknown setting{suggestion(self.key, [*beside, *self.known])}"
        if self.kind == "refused":
            return self.message
        if self.kind in ("value_error", "assertion_error"):
            return redacted(" ".join(str(self.context["error"]).split()))
        if self.kind == "too_short":
            return f"at least {'one is' if self.context['min_length'] == 1 else self.context['min_length']} needed"
        was = _shown(self.raw, quoted=False)
        if self.kind == "literal_error":
            return f"one of {self.context['expected'].replace(' or ', ', ').replace(chr(39), '')}, was {was}"
        if self.kind in _LIMITS:
            words, name = _LIMITS[self.kind]
            declared = [getattr(one, name) for one in (self.field.metadata if self.field else ()) if hasattr(one, name)]
            return f"{words} {plain_text((*declared, self.context[name])[0])}, was {was}"
        is_secret = holds_secret(self.field)
        got = "another value" if is_secret else _shown(self.raw)
        what = self.context.get("what") or _EXPECTED.get(self.kind)
        if what is None:  # of a type that only a plugin has
            return f"should {self.message.partition(' should ')[2] or 'be another value'}, got {got}"
        hint = self.context.get("hint", "")
        if what == "text" and type(self.raw) in (int, float):
            hint = "put it in quotes"
        elif what == "a list" and isinstance(self.raw, str) and self.raw and not is_secret:
            hint = f"write [{was}]"
        return f"expected {what}, got {got}{hint and f': {hint}'}"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the known one it resembles, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(wrong, names, n=1)
    if close:
        return f", did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if names else ""


def _shown(raw: object, *, quoted: bool = True) -> str:
    """Return a wrong value for a message: short, and without passwords."""
    if raw is None:
        return "nothing"
    if isinstance(raw, Mapping | list | tuple):
        return "a mapping" if isinstance(raw, Mapping) else "a list"
    text = redacted(plain_text(raw))
    text = text if len(text) <= 80 else text[:80] + "…"
    return repr(text) if quoted and isinstance(raw, str) else text


# ---------------------------------------------------------------- printing


def without_passwords(text: str) -> str:
    """Return the text; if it is a URL, with stars for its passwords, tokens and keys."""
    return _QUERY_SECRET.sub(rf"\1{STARS}", _URL_PASSWORD.sub(rf"\1{STARS}@", text))


def redacted(message: str) -> str:
    """Return a message with stars for anything like a password in the URLs it quotes, well formed or not."""
    return _QUOTED_SECRET.sub(rf"\1{STARS}", _QUOTED_PASSWORD.sub(rf"\1{STARS}@", message))


def plain_text(value: Any) -> str:
    """Return a value as it is written in the settings, without passwords."""
    plain = as_written(value)
    return json.dumps(plain) if isinstance(plain, bool) else str(plain)


def as_written(value: Any, *, redact: bool = True) -> Any:
    """Return the YAML value that reads back as `value`; with `redact`, secrets and passwords are stars."""
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return STARS if secret and redact else secret
    if isinstance(value, timedelta):
        return _duration_text(value)
    if isinstance(value, ByteSize | Interval | Symbol | SymbolPattern):
        return str(value)
    if isinstance(value, Settings):
        return {name: as_written(getattr(value, name), redact=redact) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return [as_written(item, redact=redact) for item in value]
    if isinstance(value, Mapping):
        return {str(key): as_written(item, redact=redact) for key, item in value.items()}
    plain = to_jsonable_python(value)
    return without_passwords(plain) if redact and isinstance(plain, str) else plain


def _duration_text(duration: timedelta) -> str:
    microseconds = duration // timedelta(microseconds=1)
    if microseconds == 0:
        return "0s"
    unit = next((unit for unit, size in _UNIT_US.items() if microseconds % size == 0), None)
    if unit is None:
        return f"{Decimal(microseconds) / 1000}ms"
    return f"{microseconds // _UNIT_US[unit]}{unit}"
