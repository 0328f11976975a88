"""The two exceptions that are not a fault of ours."""


class InputError(ValueError):
    """A fault in what the user gave: its message is one line that says what is wrong and what is valid.

    The command line prints it and exits with status 2; any other exception is a fault of ours and keeps its traceback.
    """


class Diverged(ArithmeticError):
    """A loss, weight or feature became NaN or infinite: a result too, as the same settings would only repeat it."""
