"""A coding is the one that `Accept-Encoding` prefers (RFC 9110, section 12.5.3), and never changes a body."""

import gzip

import pytest

from candled.serve.content_coding import CODINGS, PLAIN, ContentCoding, choose_coding

BEST = next(iter(CODINGS))
GZIP = ContentCoding("gzip", 100)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("gzip", GZIP),
        ("GZip", GZIP),
        ("x-gzip", GZIP),
        ("deflate, gzip;q=0.5", GZIP),
        ("gzip ; q=1.000 , deflate", GZIP),
        ("gzip;q=0", PLAIN),
        ("gzip;q=0.000, br", PLAIN),
        ("br", PLAIN),
        ("*", ContentCoding(BEST, 100)),
        ("gzip, *;q=0", ContentCoding("gzip", 0)),  # plain bodies are refused too
        ("*;q=0.5, zstd;q=0", GZIP),
        ("gzip;q=0.5, identity", PLAIN),
        ("gzip;q=0.5, identity;q=0.5", GZIP),
        ("identity", PLAIN),
        ("identity;q=0", None),
        ("identity;q=0, br", None),
        ("*;q=0", None),
        ("identity;q=0, gzip", ContentCoding("gzip", 0)),
        ("identity;q=0, gzip;q=0", None),
        ("gzip;q=2, ,;", PLAIN),  # not a weight
        ("gzip, zstd, br", ContentCoding(BEST, 100)),
        ("gzip, zstd;q=0.9", GZIP),
    ],
)
def test_the_coding_is_the_one_that_the_client_prefers(accept, wanted):
    assert choose_coding(accept, 100) == wanted


@pytest.mark.parametrize("accept", ["gzip", "*", "gzip;q=0.1, zstd"])
def test_nothing_is_compressed_if_that_is_off_unless_the_client_refuses_plain_bodies(accept):
    assert choose_coding(accept, 0) == PLAIN
    assert choose_coding("identity;q=0, gzip", 0) == ContentCoding("gzip", 0)


def decode(name: str, body: bytes) -> bytes:
    if name == "gzip":
        return gzip.decompress(body)
    return pytest.importorskip("zstandard").decompress(body)


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize(("size", "is_coded"), [(0, False), (99, False), (100, True), (200_000, True)])
def test_bodies_of_a_size_are_coded_to_the_same_bytes_each_time(name, size, is_coded):
    body, coding = b'{"close":1}'.ljust(size)[:size], ContentCoding(name, 100)
    assert coding.applies_to(body) is is_coded
    coded = coding.encode(body)
    assert coded == coding.encode(body)
    assert (decode(name, coded) if is_coded else coded) == body


def test_each_coding_has_an_etag_of_its_own():
    tag = '"a.1.2"'
    tags = {tag, *(ContentCoding(name, 1).tag_of(tag) for name in CODINGS)}
    assert len(tags) == 1 + len(CODINGS)
    assert PLAIN.tag_of(tag) == tag
    assert GZIP.plain_tags(f'W/"x", {GZIP.tag_of(tag)}') == f'W/"x", {tag}'
    assert PLAIN.plain_tags(GZIP.tag_of(tag)) == GZIP.tag_of(tag)  # not a body that this client accepts
