"""Errors that the user can fix: reported as one line, without a traceback."""

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 4, 16, 16
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


class InputError(ValueError):
    """Invalid option, parameter, text or checkpoint; the message names it and the fix."""


def shown(value: Any) -> str:
    """Return a value's repr for a message, at most 60 characters of it."""
    if isinstance(value, int) and abs(value) > 10**100:
        return "a huge integer"  # Python refuses to print more than 4,300 digits
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
