"""What an Admin key looks like, how it is shown, and how text is cleaned of keys."""

import re
import string

PREFIX = "sk-admin-"
_ADMIN_KEY = re.compile(r"sk-admin-[A-Za-z0-9_-]{16,500}")
# Our own sentences say how a key begins, and hints too: that alone is none.
_ANY_KEY = re.compile(r"sk-(?!admin-(?![A-Za-z0-9_*-]))[A-Za-z0-9_*-]{4,}")
# What editors, spreadsheets and chat programs put around a pasted text without showing it.
_SURROUNDING = string.whitespace + "\u00a0\u200b\u200c\u200d\u2060\ufeff"


class KeyFormError(ValueError):
    """A text that cannot be an Admin key. Its message tells what to do and never repeats the text."""


class AdminKey:
    """An OpenAI Admin key. Its text comes out through `reveal()` only; `str` and `repr` show the hint."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Takes a pasted text; surrounding white space is dropped. Raises `KeyFormError`."""
        text = text.strip(_SURROUNDING)
        if not text:
            raise KeyFormError("No key was given: paste the Admin key, which starts with sk-admin-.")
        if text.startswith("sk-") and not text.startswith(PREFIX):
            raise KeyFormError(
                "This is a project key, which cannot read billing data. An Owner or Admin of the OpenAI "
                "organization creates the right one, which starts with sk-admin-, under "
                "Settings → Organization → Admin keys."
            )
        if not text.startswith(PREFIX):
            raise KeyFormError(
                "This is not an OpenAI Admin key: one starts with sk-admin- and is created under "
                "Settings → Organization → Admin keys."
            )
        if not _ADMIN_KEY.fullmatch(text):
            raise KeyFormError(
                "This Admin key is incomplete or holds characters that a key cannot have: "
                "copy it once more, whole and alone."
            )
        self._text = text

    def reveal(self) -> str:
        """The key itself, for the request header and for encryption."""
        return self._text

    @property
    def hint(self) -> str:
        """What may be shown: `sk-admin-…` and the last four characters."""
        return f"{PREFIX}…{self._text[-4:]}"

    def __repr__(self) -> str:
        return f"AdminKey({self.hint!r})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("An AdminKey is not pickled: resolve it again where it is needed.")


def redact(text: str) -> str:
    """The text with everything that looks like an OpenAI key, whole or masked, replaced by `sk-…`."""
    return _ANY_KEY.sub("sk-…", text)
