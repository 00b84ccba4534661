"""The one exception for mistakes in what the user gave; the command line makes it one message and exit status 2."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """What the user gave cannot be used: names the field, the value and what is valid.

    `valid` is a sentence, or the valid values themselves; `why` adds a reason that the field and value do not show.
    """

    def __init__(self, field: str, value: object, valid: str | Iterable[object], why: str = "") -> None:
        self.field = field
        self.value = value
        self.valid = valid if isinstance(valid, str) else ", ".join(str(item) for item in valid)
        self.why = why
        reason = f" ({why})" if why else ""
        super().__init__(f"{field}: {value!r} is not valid{reason}. Valid: {self.valid}")

    def __reduce__(self) -> tuple[type[UserError], tuple[object, ...]]:
        """Crosses process borders (worker pools pickle exceptions by their arguments)."""
        return type(self), (self.field, self.value, self.valid, self.why)
