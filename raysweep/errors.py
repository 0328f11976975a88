"""The two exceptions that are not a fault of ours."""

MESSAGE = 2000
"""Characters of a message; of a longer one the middle, which is what the user gave, is left out."""


def printable(text: str) -> str:
    """One line of text that can be shown anywhere: what is not printable becomes its escape sequence.

    That is every control character, line break and text direction override, and every byte of a path that is no text.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """A fault in what the user gave: its message is one line that says what is wrong and what is valid.

    The command line prints it and exits with status 2; any other exception is a fault of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MESSAGE:
            message = f"{message[: MESSAGE // 2]} … {message[-MESSAGE // 2 :]}"
        # Messages quote files and names: no line break or control character in them reaches the terminal as one.
        super().__init__(printable(message))


class Diverged(ArithmeticError):
    """A loss, weight or feature became NaN or infinite: a result too, as the same settings would only repeat it."""
