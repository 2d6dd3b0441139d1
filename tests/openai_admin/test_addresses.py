"""Addresses that may receive an Admin key, and which of them are equal to a stored key."""

import pytest

from finora_pipeline.openai_admin.addresses import (
    OPENAI_HOSTS,
    AddressError,
    bound_form,
    is_loopback,
    is_openai,
    parse_address,
)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        (" https://API.OpenAI.com:443/v1/\n", "https://api.openai.com/v1"),
        ("HTTPS://eu.api.openai.com./v1", "https://eu.api.openai.com/v1"),
        ("https://gateway.example.com:8443/openai/v1", "https://gateway.example.com:8443/openai/v1"),
        ("https://müller.example/v1", "https://xn--mller-kva.example/v1"),
        ("https://10.0.0.7/v1", "https://10.0.0.7/v1"),
        ("https://[2001:DB8::0001]:8443/v1", "https://[2001:db8::1]:8443/v1"),
        ("http://127.0.0.1:8765/v1", "http://127.0.0.1:8765/v1"),
        ("http://localhost:80/v1", "http://localhost/v1"),
        ("http://[::1]:5/v1", "http://[::1]:5/v1"),
    ],
)
def test_an_address_has_one_spelling(given: str, address: str) -> None:
    assert str(parse_address(given)) == address
    assert str(parse_address(address)) == address


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "looks like"),
        ("hello", "looks like"),
        ("ftp://api.openai.com/v1", "looks like"),
        ("https:///v1", "looks like"),
        ("https://[bad/v1", "looks like"),
        ("https://example.com:99999/v1", "looks like"),
        ("https://example.com:0/v1", "looks like"),
        ("https://exa mple.com/v1", "looks like"),
        ("https://exam\nple.com/v1", "looks like"),
        ("https://api.openai.com\\@evil.example/v1", "looks like"),
        ("https://example.com/" + "x" * 500 + "/v1", "looks like"),
        ("https://name:secret@example.com/v1", "name or password"),
        ("https://api.openai.com@evil.example/v1", "name or password"),
        ("https://example.com/v1?key=1", "query"),
        ("https://example.com/v1#top", "fragment"),
        ("https://example.com/v1?", "query"),
        ("https://example.com", "end with its version"),
        ("https://example.com/v10", "end with its version"),
        ("https://example.com/../v1", "end with its version"),
        ("https://example.com/%2e%2e/v1", "end with its version"),
        ("https://example.com//v1", "end with its version"),
        ("https://-bad.example/v1", "malformed host"),
        ("https://a..example/v1", "malformed host"),
        ("https://[fe80::1%25eth0]/v1", "malformed IPv6"),
        ("http://api.openai.com/v1", "Use https"),
        ("http://10.0.0.7/v1", "Use https"),
        ("http://127.0.0.1.evil.example/v1", "Use https"),
        ("http://localhost.evil.example/v1", "Use https"),
        ("http://0.0.0.0/v1", "Use https"),
        # Spellings that resolvers accept as 127.0.0.1.
        ("http://2130706433/v1", "Use https"),
        ("http://127.1/v1", "Use https"),
    ],
)
def test_an_address_not_allowed_to_receive_keys_is_refused(given: str, words: str) -> None:
    with pytest.raises(AddressError) as refused:
        parse_address(given)

    message = str(refused.value)
    assert words in message
    assert message.endswith(".")
    assert "secret" not in message
    assert len(message) < 200


def test_openai_is_its_own_hosts_over_https() -> None:
    assert len(OPENAI_HOSTS) == 7
    assert all(is_openai(f"https://{host}/v1") for host in OPENAI_HOSTS)
    for other in (
        "https://api.openai.com.evil.example/v1",
        "https://evil-api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://xx.api.openai.com/v1",
        "http://127.0.0.1/v1",
    ):
        assert not is_openai(other)


def test_loopback_is_one_address_under_any_name_and_port() -> None:
    spellings = ("127.0.0.1:8765", "127.0.0.1", "127.9.9.9:1", "localhost:5000", "LOCALHOST", "[::1]:80")
    assert {bound_form(f"http://{spelling}/v1") for spelling in spellings} == {"http://127.0.0.1/v1"}
    assert all(is_loopback(f"http://{spelling}/v1") for spelling in spellings)
    assert bound_form("https://localhost:8443/v1") == "https://127.0.0.1/v1"
    assert not is_loopback("https://api.openai.com/v1")


@pytest.mark.parametrize(
    "other",
    [
        "https://us.api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com/proxy/v1",
        "https://127.0.0.1/v1",
    ],
)
def test_another_host_port_or_path_is_another_address(other: str) -> None:
    assert bound_form(other) != bound_form("https://api.openai.com/v1")
    assert bound_form(bound_form(other)) == bound_form(other)
