"""The exception for bad input, which the user can fix."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, what was got, and the fix.

    The command line prints the message and exits with status 2. Every other exception is a bug of this package and is
    shown with its traceback.
    """
