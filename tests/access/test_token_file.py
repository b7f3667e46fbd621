"""The file of tokens, the commands for it, and the verification of tokens and JWTs, without sockets."""

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from candled import cli
from candled.access.grant import Claims, Grant
from candled.access.token_file import Entry, digest_of, make_token, read_entries, write_entries
from candled.access.verifier import Expired, InvalidToken, TokenVerifier
from candled.config.sections import AccessSettings
from candled.errors import ConfigError
from candled.model import Symbol
from tests.clocks import START_MS, ManualClock

SECRET = b"a secret of at least 32 bytes, made for this test"
EXPIRES_S = START_MS // 1000 + 60


def grant(**claims) -> Grant:
    return Grant.of(Claims(**claims), name="a", label="a", digest="0" * 64, expires_ms=None)


def verifier(tmp_path, algorithm: str = "HS256", key: bytes = SECRET, **settings) -> TokenVerifier:
    (tmp_path / "key").write_bytes(key)
    access = AccessSettings(jwt_key_file=str(tmp_path / "key"), jwt_algorithm=algorithm, **settings)
    return TokenVerifier(access, ManualClock())


def sign(key=SECRET, algorithm="HS256", **claims) -> str:
    payload = {"sub": "jay", "exp": EXPIRES_S, **claims}
    return jwt.encode({k: v for k, v in payload.items() if v is not None}, key, algorithm=algorithm)


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("symbols", "allowed", "patterns"),
    [
        (None, {"BTC/USDT", "ETH/BTC", "BTCUP/USDT"}, {"*", "*/USDT"}),
        (["*"], {"BTC/USDT", "ETH/BTC", "BTCUP/USDT"}, {"*", "*/USDT"}),
        (["BTC/USDT"], {"BTC/USDT"}, set()),
        (["*/USDT"], {"BTC/USDT", "BTCUP/USDT"}, {"*/USDT"}),
        (["*/USDT", "!*UP/USDT"], {"BTC/USDT"}, set()),
        (["*/USDT", "ETH/BTC"], {"BTC/USDT", "BTCUP/USDT", "ETH/BTC"}, {"*/USDT"}),
    ],
)
def test_symbols_are_patterns_as_in_the_settings(symbols, allowed, patterns):
    one = grant(symbols=symbols)
    known = ["BTC/USDT", "ETH/BTC", "BTCUP/USDT"]
    assert {text for text in known if one.allows_symbol(Symbol.parse(text))} == allowed
    assert {text for text in ("*", "*/USDT") if one.allows_pattern(text)} == patterns


# ---------------------------------------------------------------- the file and its commands


def run(capsys, *words) -> tuple[int, str, str]:
    status = cli.main(["token", *words])
    return status, *capsys.readouterr()


@pytest.mark.usefixtures("capsys")
def test_tokens_are_made_listed_and_revoked(tmp_path, capsys):
    file = tmp_path / "tokens.yaml"
    at = ("--file", str(file))
    _, token, _ = run(capsys, "new", "desk-3", "--symbol", "*/USDT", "--interval", "5m", "--requests", "9", *at)
    token = token.strip()
    run(capsys, "new", "b", "--expires", "90d", *at)
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    entry = read_entries(file)["desk-3"]
    assert (entry.sha256, entry.symbols, entry.expires) == (digest_of(token), ["*/USDT"], None)
    checks = TokenVerifier(AccessSettings(tokens_file=str(file)), ManualClock())
    assert checks.verify(token).requests == 9
    status, listed, _ = run(capsys, "list", *at)
    assert (status, listed.splitlines()[0]) == (0, "desk-3: never: symbols */USDT; intervals 5m; requests 9")
    assert listed.splitlines()[1].endswith(": everything")
    assert run(capsys, "revoke", "desk-3", *at)[:2] == (0, "revoked desk-3\n")
    checks.refresh()
    with pytest.raises(InvalidToken):
        checks.verify(token)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("new", "a_b"), "name: expected 1 to 32 letters, digits and -, and not jwt, got 'a_b'"),
        (("new", "jwt"), "and not jwt"),
        (("new", "a", "--symbol", "BTC"), "tokens.a: expected"),
        (("new", "a", "--symbol", "!*"), "at least one symbol or pattern without !"),
        (("new", "a", "--interval", "7x"), "tokens.a:"),
        (("new", "a", "--expires", "soon"), "expected a duration such as 12h or 90d, got 'soon'"),
        (("new", "has"), "has a token has already"),
        (("revoke", "absent"), "has no token absent"),
    ],
)
def test_a_mistake_gets_a_sentence(tmp_path, capsys, words, problem):
    file = tmp_path / "tokens.yaml"
    write_entries(file, {"has": Entry(sha256="0" * 64)})
    before = file.read_text()
    status, _, error = run(capsys, *words, "--file", str(file))
    assert (status, problem in error) == (2, True), error
    assert file.read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        "tokens: [", "[]", "tokens: {a: {}}", "tokens: {a: {sha256: x}}", "other: 1",
        f"tokens: {{a: {{sha256: '{'0' * 64}', symbol: [BTC/USDT]}}}}",
        f"tokens: {{a: {{sha256: '{'0' * 64}', symbols: []}}}}",
        f"tokens: {{a: {{sha256: '{'0' * 64}', rooms: -1}}}}",
        f"tokens: {{a: {{sha256: '{'0' * 64}', expires: soon}}}}",
        f"tokens: {{'a b': {{sha256: '{'0' * 64}'}}}}",
    ],
)  # fmt: skip
def test_a_file_with_a_mistake_is_refused_at_the_start(tmp_path, text):
    file = tmp_path / "tokens.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        TokenVerifier(AccessSettings(tokens_file=str(file)), ManualClock())


def test_a_missing_file_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        TokenVerifier(AccessSettings(tokens_file=str(tmp_path / "none")), ManualClock())


# ---------------------------------------------------------------- JWTs


def test_each_algorithm_verifies_with_its_public_key(tmp_path):
    pem = serialization.Encoding.PEM
    for algorithm, private in (
        ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ):
        public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        checks = verifier(tmp_path, algorithm, public)
        assert checks.verify(sign(private, algorithm, intervals=["5m"])).intervals == {"5m"}
        for wrong in (sign(), sign(digest_of("x").encode(), "HS256")):  # of another algorithm
            with pytest.raises(InvalidToken):
                checks.verify(wrong)
        secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with pytest.raises(ConfigError, match="expected the public key"):
            verifier(tmp_path, algorithm, secret)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None}, {"sub": ""}, {"sub": "x" * 65}, {"exp": None}, {"exp": "1"}, {"exp": 1e300}, {"exp": -1},
        {"nbf": EXPIRES_S}, {"symbols": "BTC/USDT"}, {"symbols": []}, {"symbols": ["BTC"]}, {"symbols": [1]},
        {"intervals": ["x"]}, {"rooms": -1}, {"rooms": 1.5}, {"rooms": "1"}, {"requests": True}, {"aud": "b"},
        {"iss": "b"},
    ],
    ids=str,
)  # fmt: skip
def test_a_jwt_with_a_wrong_claim_is_invalid(tmp_path, claims):
    checks = verifier(tmp_path, jwt_audience="a", jwt_issuer="a")
    assert checks.verify(sign(aud="a", iss="a")).name == "jay"
    with pytest.raises(InvalidToken):
        checks.verify(sign(**{"aud": "a", "iss": "a", **claims}))


async def test_a_jwt_expires_by_candleds_clock_also_once_it_was_verified(tmp_path):
    checks = verifier(tmp_path)
    token = sign()
    assert checks.verify(token) == checks.verify(token)
    await checks._clock.advance(60)
    with pytest.raises(Expired):
        checks.verify(token)


def test_unsigned_and_foreign_headers_are_refused(tmp_path):
    checks = verifier(tmp_path)
    for wrong in (
        jwt.encode({"sub": "a", "exp": EXPIRES_S}, None, algorithm="none"),
        sign()[:-3],
        sign() + "x",
        "..",
        "",
    ):
        with pytest.raises(InvalidToken):
            checks.verify(wrong)


def test_another_key_ends_the_grants_of_the_former_one(tmp_path):
    checks = verifier(tmp_path)
    known = checks.verify(sign())
    assert checks.is_current(known)
    (tmp_path / "key").write_bytes(SECRET[::-1])
    checks.refresh()
    assert not checks.is_current(known)
    with pytest.raises(InvalidToken):
        checks.verify(sign())


def test_a_secret_must_be_long(tmp_path):
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        verifier(tmp_path, key=b"short")


TOKEN = make_token("a")


@given(st.one_of(st.text(), st.text('abc._-{}="0', max_size=80), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_no_text_is_a_token(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "tokens.yaml"
    key = file.with_name("key")
    if not file.exists():
        write_entries(file, {"a": Entry(sha256=digest_of(TOKEN))})
        key.write_bytes(SECRET)
    settings = AccessSettings(tokens_file=str(file), jwt_key_file=str(key), jwt_algorithm="HS256")
    checks = TokenVerifier(settings, ManualClock())
    for wrong in (text, f"candled_a_{text}", f"{TOKEN}{text or 'x'}"):
        with pytest.raises(InvalidToken):
            checks.verify(wrong)
