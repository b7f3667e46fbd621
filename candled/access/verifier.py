"""Verifies access tokens: those of a file, and JWTs."""

import hashlib
import hmac
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any

import msgspec

from candled.config.sections import AccessSettings
from candled.errors import CandledError, ConfigError
from candled.exchange import Clock

from .grant import Claims, Grant
from .token_file import JWT_LABEL, PREFIX, digest_of, name_of, read_grants

logger = logging.getLogger(__name__)

_LONGEST = 4096  # characters of a token
_MOST_VERIFIED = 10_000  # JWTs whose signatures are not checked again
_LEAST_SECRET = 32  # bytes of a key for HS256 (RFC 7518, 3.2)
_NO_DIGEST = "0" * 64


class InvalidToken(CandledError):
    """A token that grants nothing. The error text does not contain it."""


class Expired(InvalidToken):
    """A token that was valid once."""


class _Payload(Claims, kw_only=True):
    """The payload of a JWT (RFC 7519, 4.1). The library checks `iss` and `aud`."""

    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    exp: Annotated[float, msgspec.Meta(ge=0, le=2**53)]
    nbf: Annotated[float, msgspec.Meta(ge=0, le=2**53)] = 0


class TokenVerifier:
    """The tokens that are valid now.

    `refresh` reads changed files again. If a file then has a mistake, the former tokens stay valid, and a line in the
    log has the reason.
    """

    def __init__(self, settings: AccessSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._grants: dict[str, Grant] = {}
        self._key: Any = None
        self._key_digest = ""
        # JWTs whose signatures were checked with the present key, the oldest first
        self._verified: OrderedDict[str, Grant] = OrderedDict()
        self._states: dict[str, object] = {}
        if settings.tokens_file:
            self._read_tokens()
        if settings.jwt_key_file:
            self._read_key()

    def refresh(self) -> None:
        """Read the files again that have changed."""
        settings = self._settings
        for path, read in ((settings.tokens_file, self._read_tokens), (settings.jwt_key_file, self._read_key)):
            if path and self._states.get(path) != _state_of(path):
                try:
                    read()
                    logger.info("%s: read again", path)
                except ConfigError as error:
                    logger.error("%s; the former access tokens stay valid", error)

    def verify(self, token: str) -> Grant:
        """Return the grant of a token.

        The comparison of hashes takes the same time for any wrong token.

        Raises:
            InvalidToken: it is wrong, revoked, or not valid yet.
            Expired: it has expired.
        """
        if len(token) > _LONGEST:
            raise InvalidToken("Invalid token")
        digest = digest_of(token)
        known = self._grants.get(name_of(token)) if token.startswith(PREFIX) else None
        is_right = hmac.compare_digest(digest, _NO_DIGEST if known is None else known.digest)
        grant = known if known is not None and is_right else self._verified.get(digest)
        if grant is None and self._key is not None and not token.startswith(PREFIX):
            grant = self._verify_jwt(token, digest)
        if grant is None:
            raise InvalidToken("Invalid token")
        if self.is_expired(grant):
            raise Expired("The token has expired")
        return grant

    def is_expired(self, grant: Grant) -> bool:
        """Return True once the token of a grant has expired."""
        return grant.expires_ms is not None and grant.expires_ms <= self._clock.now_ms()

    def is_current(self, grant: Grant) -> bool:
        """Return True while the file has the token with the same claims, or the key that verified a JWT is in use."""
        return grant.key == self._key_digest if grant.key else self._grants.get(grant.name) == grant

    # ------------------------------------------------------------ inside

    def _verify_jwt(self, token: str, digest: str) -> Grant | None:
        import jwt

        settings = self._settings
        try:
            payload = jwt.decode(
                token,
                self._key,
                algorithms=[settings.jwt_algorithm or ""],
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                # the times are checked by candled's clock
                options={
                    "require": ["exp", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": settings.jwt_audience is not None,
                },
            )
            claims = msgspec.convert(payload, _Payload)
            if claims.nbf * 1000 > self._clock.now_ms():
                return None
            grant = Grant.of(
                claims,
                name=claims.sub,
                label=JWT_LABEL,
                digest=digest,
                expires_ms=int(claims.exp * 1000),
                key=self._key_digest,
            )
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        self._verified[digest] = grant
        if len(self._verified) > _MOST_VERIFIED:
            self._verified.popitem(last=False)
        return grant

    def _read_tokens(self) -> None:
        path = self._settings.tokens_file
        self._states[path] = _state_of(path)  # before reading: a later change is read again
        self._grants = read_grants(Path(path))

    def _read_key(self) -> None:
        path = self._settings.jwt_key_file
        self._states[path] = _state_of(path)
        self._key, self._key_digest = _read_key(path, self._settings.jwt_algorithm or "")
        self._verified.clear()


def _state_of(path: str) -> object:
    """Return a value that changes with a file; None if it does not exist."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_key(path: str, algorithm: str) -> tuple[Any, str]:
    """Return the key of JWTs, and its hash. The file has a secret for HS256, else a public key in PEM.

    Raises:
        ConfigError: the file cannot be read, the key does not fit the algorithm, or the library is missing.
    """
    try:
        import jwt
    except ImportError:
        raise ConfigError("access.jwt_key_file: JWTs need a library: pip install 'candled[jwt]'") from None
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    if algorithm == "HS256" and len(key) < _LEAST_SECRET:
        raise ConfigError(f"{path}: a secret for HS256 needs at least {_LEAST_SECRET} bytes")
    if algorithm != "HS256" and b"PRIVATE KEY" in key:
        raise ConfigError(f"{path}: expected the public key; keep the private one where tokens are made")
    try:
        return jwt.get_algorithm_by_name(algorithm).prepare_key(key), hashlib.sha256(key).hexdigest()
    except (jwt.PyJWTError, NotImplementedError, ValueError, TypeError) as error:
        needs = "; it needs the library cryptography" if isinstance(error, NotImplementedError) else ""
        raise ConfigError(f"{path}: no key for {algorithm}{needs}") from None
