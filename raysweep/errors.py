"""The exceptions that raysweep raises on purpose, and what no message may show."""

from __future__ import annotations

import re
import signal
from urllib.parse import unquote

MESSAGE = 2000
"""Most characters of a message. If a message is longer, its middle is left out, because the middle quotes the user's
input."""


QUOTED = 80
"""Characters of a value that a message repeats."""

URI_OPTIONS = {
    "s3": ("region", "scheme", "endpoint_override"),
    "gs": ("scheme", "endpoint_override", "retry_limit_seconds", "project_id"),
    "abfs": (
        *("blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme", "dfs_storage_scheme"),
        *("enable_tls", "credential_kind", "tenant_id", "client_id", "background_writes"),
    ),
}
"""The options that may stand in the URI of a bucket. None of them is a secret, so messages show their values."""
SHOWN_OPTIONS = frozenset(name for names in URI_OPTIONS.values() for name in names)

# The length of a scheme is bounded, or a long word in a message would be searched from each of its letters to its end.
URI = re.compile(r"([A-Za-z][\w+.-]{0,30}://|\b(?:s3[an]?|gs|gcs|abfss?|https?|ray):/*)(\S*)", re.IGNORECASE)
# A password may hold any character, so it ends at the last @. Digits alone after the colon are a port.
PASSWORD = re.compile(r"[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@")
USER = re.compile(r"[^/?#@]*@")


def has_password(uri: str) -> bool:
    """Whether a URI has the form SCHEME://USER:PASSWORD@…, also where the slashes are missing."""
    start = URI.match(uri)
    return start is not None and PASSWORD.match(uri, start.end(1)) is not None


def masked(text: str) -> str:
    """`text` with `***` in place of the user and the password of each URI, and of values of options that may be secret.

    Options of buckets that are no secrets are shown.
    """
    return URI.sub(lambda uri: uri[1] + _masked_rest(uri[1], uri[2]), text)


def _masked_rest(scheme: str, rest: str) -> str:
    user = PASSWORD.match(rest) or (None if scheme.lower().startswith("abfs") else USER.match(rest))
    if user is not None:  # abfs://CONTAINER@ACCOUNT names no user
        rest = f"***@{rest[user.end() :]}"
    path, mark, query = rest.partition("?")
    return path + mark + re.sub(r"[^&;]+", _masked_option, query)


def _masked_option(match: re.Match[str]) -> str:
    option = match[0].rstrip(":,.)'\"")  # the punctuation of a sentence around the URI
    name, _, value = option.partition("=")
    if not option or (name.lower() in SHOWN_OPTIONS and "@" not in unquote(value)):
        return match[0]
    return (f"{name}=***" if value else "***") + match[0][len(option) :]


def printable(text: str) -> str:
    """Return the text as one line that can be shown anywhere. Unprintable characters become escape sequences.

    These are control characters, line breaks, marks that change the direction of text, and the bytes of a path that is
    not valid text.
    """
    if text.isprintable():  # so is almost every text, and a report shows thousands
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened_value(text: str) -> str:
    """Return a value for a message. The middle of a long value is left out."""
    return text if len(text) <= QUOTED else f"{text[: QUOTED // 2]} … {text[-QUOTED // 2 :]}"


class RaysweepError(Exception):
    """The base of all exceptions that raysweep raises on purpose.

    Example:
        >>> try:
        ...     raysweep.run("alpha.yaml", set={"alpah": [0.1, 1]})
        ... except raysweep.RaysweepError as fault:
        ...     print(fault)
    """


class SweepInterrupted(RaysweepError):
    """A signal interrupted a sweep; the message says how it is resumed.

    Args:
        message: The message.
        place: The sweep's results directory, or the URI of one in a bucket.
        number: The number of the signal.
    """

    def __init__(self, message: str, place: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.place, self.number = place, number


class SweepBrokeOff(RaysweepError):
    """Something unexpected ended a sweep; the message says what, and how the sweep is resumed."""


class ResultsLost(RaysweepError):
    """The results directory of a sweep is gone, or takes no report; the message says what to do."""


class InputError(ValueError, RaysweepError):
    """A fault in what the user gave: its message is one line that says what is wrong and what is valid.

    The command line prints it and exits with status 2; any other exception is a fault of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        message = masked(message)
        if len(message) > MESSAGE:
            message = f"{message[: MESSAGE // 2]} … {message[-MESSAGE // 2 :]}"
        # Messages quote files and names: no line break or control character in them reaches the terminal as one.
        super().__init__(printable(message))


class Diverged(ArithmeticError):
    """A loss, weight, feature or metric became NaN or infinite, or a metric left the range that its part declares.

    This is a result: the same settings would only repeat it.
    """
