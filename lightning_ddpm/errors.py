"""The one exception that is the user's to mend, not ours."""


class UserError(ValueError):
    """Bad input, said in one sentence: what is wrong, what was got, and the fix.

    The command line prints the sentence and exits with status 2; every other exception keeps its traceback, because it
    is a bug of ours.
    """
