"""Admin keys: extraction from pasted text, refusal, and secrecy."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.keys import PREFIX, AdminKey, KeyFormError, redact

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
KEY = "sk-admin-Zk3_9xQw-7LmN2pRtVbY4cD1"
SECRET = KEY.removeprefix(PREFIX)[:-4]

# The same examples in every run, without a time limit on a busy machine.
REPEATABLE = settings(derandomize=True, deadline=None)

admin_keys = st.text(ALPHABET, min_size=16, max_size=200).map(PREFIX.__add__)


@pytest.mark.parametrize(
    "pasted",
    [
        KEY,
        f"  {KEY}\n",
        f"\t{KEY}\r\n",
        f"\u00a0{KEY}\u00a0",
        f"\ufeff{KEY}",
        f"{KEY}\u200b",
        f" \u200b{KEY}\u2060 ",
        f"\u200b \n{KEY}\n \u200d",
        pytest.param(f"\ufeff \u200b{KEY}"),
        "Bearer " + KEY,
        f"Authorization: Bearer {KEY}",
        f"OPENAI_ADMIN_KEY={KEY}",
        f'export OPENAI_ADMIN_KEY="{KEY}"',
        f"OPENAI_ADMIN_KEY: '{KEY}'",
        f'"admin_key": "{KEY}",',
        f"`{KEY}`",
        f"“{KEY}”",
        f"<{KEY}>",
        f"{KEY},",
        f'("{KEY}")',
        f"My key is {KEY}.",
    ],
)
def test_text_around_a_pasted_key_is_dropped(pasted: str) -> None:
    assert AdminKey(pasted).reveal() == KEY


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        ("", "No key was given"),
        (" \n\u200b", "No key was given"),
        ("sk-proj-Zk39xQw7LmN2pRtVbY4cD1", "project key"),
        ("sk-svcacct-Zk39xQw7LmN2pRtVbY4cD1", "project key"),
        ("sk-Zk39xQw7LmN2pRtVbY4cD1", "project key"),
        ("Zk39xQw7LmN2pRtVbY4cD1", "not an OpenAI Admin key"),
        ("my password is hunter2", "not an OpenAI Admin key"),
        ("SK-ADMIN-Zk39xQw7LmN2pRtVbY4cD1", "not an OpenAI Admin key"),
        ("sk-ant-admin01-Zk39xQw7LmN2pRtVbY4cD1", "an Anthropic key"),
        ('"sk-ant-api03-Zk39xQw7LmN2pRtVbY4cD1"', "an Anthropic key"),
        ("sk-or-v1-Zk39xQw7LmN2pRtVbY4cD1", "an OpenRouter key"),
        ("xai-Zk39xQw7LmN2pRtVbY4cD1", "an xAI key"),
        ("gsk_Zk39xQw7LmN2pRtVbY4cD1", "a Groq key"),
        ("AIzaZk39xQw7LmN2pRtVbY4cD1", "a Google key"),
        ("sess-Zk39xQw7LmN2pRtVbY4cD1", "session key of a browser"),
        ("sk-lf-Zk39xQw7LmN2pRtVbY4cD1", "not an OpenAI Admin key"),
        ("OPENAI_API_KEY=sk-proj-Zk39xQw7LmN2pRtVbY4cD1", "project key"),
        (f"OPENAI_API_KEY=sk-proj-Zk39xQw7LmN2pRtVbY4cD1\nOPENAI_ADMIN_KEY={KEY}", "the whole key"),
        (f"{KEY}...", "the whole key"),
        ("x" * 200 + " " + KEY, "the whole key"),
        ("x" * 2000 + " " + KEY, "the whole key"),
        ("sk-admin-", "incomplete"),
        ("sk-admin-tooshort", "incomplete"),
        (f"{KEY} {KEY}", "the whole key"),
        (f"{KEY}\n{KEY}", "the whole key"),
        (f"{KEY}\u200b{KEY}", "the whole key"),
        (f"{KEY}…", "characters that a key cannot have"),
        ("sk-admin-" + "x" * 501, "the whole key"),
        ("sk-admin-Zk39xQw7LmN2é", "characters that a key cannot have"),
    ],
)
def test_an_invalid_key_is_refused_without_repeating_it(pasted: str, words: str) -> None:
    with pytest.raises(KeyFormError) as refused:
        AdminKey(pasted)

    message = str(refused.value)
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message
    for secret in (KEY, SECRET, "Zk39xQw7LmN2", "hunter2", "tooshort"):
        assert secret not in message


def test_only_reveal_shows_the_key() -> None:
    key = AdminKey(KEY)

    assert key.reveal() == KEY
    assert key.hint == "sk-admin-…4cD1"
    for shown in (repr(key), str(key), f"{key}", f"{key!r}", "%s" % key, repr([key]), repr({"key": key})):  # noqa: UP031
        assert "sk-admin-…4cD1" in shown
        assert SECRET not in shown
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_key_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled") as refused:
        pickle.dumps({"key": AdminKey(KEY)}, protocol)
    assert SECRET not in str(refused.value)


def test_key_is_not_copied() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.deepcopy(AdminKey(KEY))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"Incorrect API key provided: {KEY}.", "Incorrect API key provided: sk-…."),
        ("Incorrect API key provided: sk-admin*fake. You", "Incorrect API key provided: sk-…. You"),
        ("sk-proj-***********abcd is not known", "sk-… is not known"),
        ("x-api-key: sk-ant-admin01-Zk39xQw7LmN2.", "x-api-key: sk-…."),
        ("sk-or-v1-Zk39xQw7LmN2 and xai-Zk39xQw7LmN2", "sk-… and sk-…"),
        ("gsk_Zk39xQw7LmN2pRtVbY4cD1, AIzaZk39xQw7LmN2pRtVbY4cD1", "sk-…, sk-…"),
        ("(AKIAZK39XQW7LMN2PR) sess-Zk39xQw7LmN2", "(sk-…) sk-…"),
        (f'{{"key":"{KEY}","old":"sk-svcacct-12345678"}}', '{"key":"sk-…","old":"sk-…"}'),
        ("One starts with sk-admin-, as sk-admin-…abcd.", "One starts with sk-admin-, as sk-admin-…abcd."),
        ("Missing scopes: api.usage.read.", "Missing scopes: api.usage.read."),
        ("", ""),
    ],
)
def test_redact_leaves_the_sentence_and_no_key(said: str, shown: str) -> None:
    assert redact(said) == shown
    assert redact(shown) == shown


@REPEATABLE
@given(text=admin_keys, before=st.text(" \t\r\n", max_size=3), after=st.text(" \t\r\n", max_size=3))
def test_every_key_in_the_documented_form_is_taken_and_hidden(text: str, before: str, after: str) -> None:
    key = AdminKey(before + text + after)

    assert key.reveal() == text
    assert key.hint == f"{PREFIX}…{text[-4:]}"
    assert text not in repr(key) + str(key)


@REPEATABLE
@given(key=admin_keys, before=st.text(), after=st.text())
def test_no_text_keeps_a_key_through_redact(key: str, before: str, after: str) -> None:
    assert key not in redact(before + key + after)


@REPEATABLE
@given(
    key=admin_keys,
    # Characters invalid in a key, in its middle or at its end.
    rubbish=st.text(st.characters(exclude_characters=ALPHABET), min_size=1).map("{}?".format),
    whole=st.booleans(),
)
def test_no_refused_admin_key_is_repeated(key: str, rubbish: str, whole: bool) -> None:
    half = len(key) // 2
    pasted = f"{key[:half]}{rubbish}{key[half:] if whole else ''}?"

    with pytest.raises(KeyFormError) as refused:
        AdminKey(pasted)

    shown = str(refused.value) + repr(refused.value)
    assert key.removeprefix(PREFIX)[:12] not in shown
    assert rubbish not in shown


@REPEATABLE
@given(text=st.text())
def test_no_refused_text_is_repeated(text: str) -> None:
    # No message holds the question mark, so that it marks what was pasted.
    pasted = f"¿{text}?"

    with pytest.raises(KeyFormError) as refused:
        AdminKey(pasted)

    assert pasted not in str(refused.value)
