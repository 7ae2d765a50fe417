"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: its message is one sentence that says what was given, what was
    expected and what to do. The commands print it and exit with code 2."""
