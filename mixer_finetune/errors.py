"""The error that a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: one line with what was expected, what was found and which option to change.

    The command line prints it without a traceback and exits with status 2 (`--debug` shows the traceback).
    """


class NoImagesError(UserError):
    """No image of a split could be decoded."""
