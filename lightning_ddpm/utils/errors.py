"""The one exception that is the user's to mend, not ours."""


def first_line(error: BaseException) -> str:
    """What another library says went wrong, short enough for a sentence; its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class UserError(ValueError):
    """Bad input, said in one sentence: what is wrong, what was got, and the fix.

    The command line prints the sentence and exits with status 2; every other exception keeps its traceback, because it
    is a bug of ours.
    """
