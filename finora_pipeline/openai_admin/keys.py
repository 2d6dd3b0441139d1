"""The form of Admin keys, how they are shown, and how keys are redacted from text."""

import re
import string

PREFIX = "sk-admin-"
_ADMIN_KEY = re.compile(r"sk-admin-[A-Za-z0-9_-]{16,500}")
# The bare prefix, which our own sentences and hints contain, is not a key. Keys of other providers are
# redacted as well, since people paste them by mistake.
_ANY_KEY = re.compile(
    r"sk-(?!admin-(?![A-Za-z0-9_*-]))[A-Za-z0-9_*-]{4,}"
    r"|(?<![A-Za-z0-9_-])(?:sess|xai|pplx)-[A-Za-z0-9_*-]{8,}"
    r"|(?<![A-Za-z0-9_-])(?:gsk|hf|r8)_[A-Za-z0-9_*-]{16,}"
    r"|(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_*-]{20,}"
    r"|(?<![A-Za-z0-9_-])(?:AKIA|ASIA)[A-Z0-9*]{12,}"
)
# Invisible characters that editors, spreadsheets and chat programs add around a pasted text.
_SURROUNDING = string.whitespace + "\u00a0\u200b\u200c\u200d\u2060\ufeff"
# A key of any provider in a text, and what may follow it: quotes, brackets, the comma of a list.
_PASTED_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:sk-|sess-|xai-|pplx-|gsk_|hf_|r8_|AIza|AKIA|ASIA)[A-Za-z0-9_-]+"
)
_AFTER_A_KEY = re.compile(r"[\s\"'`’”»>)\]}]*[.,;]?[\s\"'`’”»>)\]}]*")
_LONGEST_BEFORE_A_KEY = 100
_PROJECT_KEY = re.compile(r"sk-(?:proj|svcacct|None)-|sk-[A-Za-z0-9]{10,}$")
_OTHERS = (
    ("sk-ant-", "an Anthropic key"),
    ("sk-or-", "an OpenRouter key"),
    ("xai-", "an xAI key"),
    ("gsk_", "a Groq key"),
    ("AIza", "a Google key"),
    ("hf_", "a Hugging Face key"),
    ("pplx-", "a Perplexity key"),
    ("r8_", "a Replicate key"),
    ("AKIA", "an Amazon key"),
    ("ASIA", "an Amazon key"),
    ("sess-", "an OpenAI session key of a browser"),
)
_WHERE = (
    "An Owner or Admin of the OpenAI organization creates an Admin key, which starts with sk-admin-, under "
)


class KeyFormError(ValueError):
    """The text cannot be an Admin key. The message says what to do and never contains the text."""


class AdminKey:
    """An OpenAI Admin key. Only `reveal()` returns its text; `str` and `repr` return the hint."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Take a pasted text and drop what people copy along with a key. Raises `KeyFormError`."""
        text = _unwrapped(text.strip(_SURROUNDING))
        if not text:
            raise KeyFormError("No key was given: paste the Admin key, which starts with sk-admin-.")
        if _PROJECT_KEY.match(text):
            raise KeyFormError(
                "This is a project key, which cannot read billing data. An Owner or Admin of the OpenAI "
                "organization creates the right one, which starts with sk-admin-, under "
                "Settings → Organization → Admin keys."
            )
        if other := next((name for start, name in _OTHERS if text.startswith(start)), None):
            raise KeyFormError(
                f"This is {other}, not an OpenAI Admin key. {_WHERE}Settings → Organization → Admin keys."
            )
        if PREFIX not in text:
            raise KeyFormError(
                "This is not an OpenAI Admin key: one starts with sk-admin- and is created under "
                "Settings → Organization → Admin keys."
            )
        if not _ADMIN_KEY.fullmatch(text):
            raise KeyFormError(
                "This Admin key is incomplete or contains characters that a key cannot have: "
                "copy the whole key again, and nothing else."
            )
        self._text = text

    def reveal(self) -> str:
        """The key itself, for the request header and for encryption."""
        return self._text

    @property
    def hint(self) -> str:
        """The part that may be shown: `sk-admin-…` and the last four characters."""
        return f"{PREFIX}…{self._text[-4:]}"

    def __repr__(self) -> str:
        return f"AdminKey({self.hint!r})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("An AdminKey cannot be pickled: resolve it again where it is needed.")


def _unwrapped(text: str) -> str:
    """The only key in a pasted text, without a name, header or quotes; else the text itself."""
    found = list(_PASTED_KEY.finditer(text)) if len(text) <= 1_000 else []
    if len(found) == 1 and found[0].start() <= _LONGEST_BEFORE_A_KEY:
        (key,) = found
        if _AFTER_A_KEY.fullmatch(text, key.end()):
            return key[0]
    return text


def redact(text: str) -> str:
    """Replace everything that looks like a key of any provider, complete or masked, by `sk-…`."""
    return _ANY_KEY.sub("sk-…", text)
