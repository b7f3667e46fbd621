"""Texts from outside, made safe to print."""

#: The names of query parameters and settings with secret values, as a regular expression. `=` follows.
SECRET_NAMES = r"[a-z0-9_.-]*(?:password|passwd|pwd|token|key|secret|signature|auth|sig)"


def printable(text: str, max_length: int) -> str:
    """Return the beginning of a text, with escapes for characters that could forge a line or cannot be encoded."""
    text = text[:max_length]
    if text.isprintable():
        return text
    escaped = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return "".join(escaped)[:max_length]
