"""The user's mistakes: reported as one line, without a traceback."""


class InputError(ValueError):
    """A wrong parameter, text or checkpoint; the message names it and the fix."""
