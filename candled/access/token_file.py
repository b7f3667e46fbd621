"""The file of access tokens: YAML with a hash and the claims of each token. The tokens themselves are never stored."""

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from candled.errors import ConfigError
from candled.model import parse_iso_ms
from candled.settings.yaml_text import NotYaml, read_yaml

from .grant import Claims, Grant

PREFIX = "candled_"
JWT_LABEL = "jwt"  # the name of all JWTs in metrics
_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
_SECRET_BYTES = 32
_HEAD = "# Access tokens of candled, written by `candled token`. It has hashes, which are useless without the tokens.\n"


class Entry(Claims, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A token in the file."""

    #: The SHA-256 hash of the complete token, in hexadecimal digits.
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    #: The time at which it expires, such as `2027-01-01T00:00:00Z`; None for never.
    expires: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: dict[str, Entry] = {}


def make_token(name: str) -> str:
    """Return a new token: its name and a random secret of 256 bits. It needs no escapes in URLs and headers.

    Raises:
        ConfigError: the name has another form.
    """
    check_name(name)
    return f"{PREFIX}{name}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def check_name(name: str) -> None:
    """Check the name of a token.

    Raises:
        ConfigError: the name has another form.
    """
    if not _NAME.fullmatch(name) or name == JWT_LABEL:
        raise ConfigError(f"name: expected 1 to 32 letters, digits and -, and not {JWT_LABEL}, got {name[:64]!r}")


def name_of(token: str) -> str:
    """Return the name in a token. Of any other text, return a part without a meaning."""
    return token.removeprefix(PREFIX).partition("_")[0]


def digest_of(token: str) -> str:
    """Return the hash of a token. The secret is random, so that a hash without salt and without rounds is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def read_entries(path: Path) -> dict[str, Entry]:
    """Read a file of tokens.

    Raises:
        ConfigError: it cannot be read, or has a mistake. The error text contains no value of the file.
    """
    try:
        raw = read_yaml(path.read_text("utf-8-sig"))
        entries = msgspec.convert({} if raw is None else raw, _File).tokens
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from None
    except NotYaml as error:
        raise ConfigError(f"{path}{'' if error.line is None else f':{error.line}'}: not valid YAML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name in entries:
        check_name(name)
    return entries


def read_grants(path: Path) -> dict[str, Grant]:
    """Read the grants of a file of tokens, by name.

    Raises:
        ConfigError: it cannot be read, or has a mistake.
    """
    return make_grants(path, read_entries(path))


def make_grants(path: Path, entries: Mapping[str, Entry]) -> dict[str, Grant]:
    """Return the grants of tokens, by name. `path` is for error texts.

    Raises:
        ConfigError: claims have a wrong form; the error text has a line for each.
    """
    grants, problems = {}, []
    for name, entry in entries.items():
        try:
            expires_ms = None if entry.expires is None else parse_iso_ms(entry.expires)
            grants[name] = Grant.of(entry, name=name, label=name, digest=entry.sha256, expires_ms=expires_ms)
        except (ValueError, OverflowError) as error:
            problems.append(f"{path}: tokens.{name}: {error}")
    if problems:
        raise ConfigError(problems)
    return grants


def add_entry(path: Path, name: str, entry: Entry) -> None:
    """Add a token to a file, which is created if it does not exist.

    Raises:
        ConfigError: the file has a token of that name or cannot be used, or a claim has a wrong form.
    """
    entries = read_entries(path) if path.exists() else {}
    if name in entries:
        raise ConfigError(f"{path}: has a token {name} already; revoke it first, or choose another name")
    entries[name] = entry
    make_grants(path, entries)
    write_entries(path, entries)


def write_entries(path: Path, entries: Mapping[str, Entry]) -> None:
    """Replace a file of tokens in one step. Only its owner can read it.

    Raises:
        ConfigError: it cannot be written.
    """
    tokens: dict[str, Any] = {name: msgspec.to_builtins(entry) for name, entry in entries.items()}
    text = _HEAD + yaml.safe_dump({"tokens": tokens}, sort_keys=False, allow_unicode=True)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():  # the daemon may run as another user of the same group
                Path(name).chmod(path.stat().st_mode & 0o777)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
