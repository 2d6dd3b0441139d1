"""Where a server can be reached: on this machine, or behind a proxy at a public address."""

from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class ExposedWithoutSignIn(Exception):
    """Other machines would reach a server without sign-in; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """The origins of a server as browsers write them, and whether other machines reach it."""

    origins: frozenset[str]
    is_public: bool


def session_cookie(*, is_public: bool) -> str:
    """The name of the session cookie. Browsers bind the public one to this host and to https."""
    return "__Host-finora" if is_public else "finora"


def public_origin(public_url: str) -> str | None:
    """The origin of an https address without a path, as browsers write it; else None."""
    address = urlsplit(public_url)
    if address.scheme != "https" or not address.netloc or address.path not in ("", "/"):
        return None
    return f"https://{address.netloc.lower().removesuffix(':443')}"


def exposure(host: str, port: int, public_url: str | None, has_sign_in: bool) -> Exposure:
    """Decide the exposure of a server from its bind address and its public address.

    Raises `ExposedWithoutSignIn`.
    """
    is_loopback = host in ("127.0.0.1", "::1", "localhost")
    if is_loopback and public_url is None:
        # Browsers leave out the default port.
        end = "" if port == 80 else f":{port}"
        return Exposure(frozenset(f"http://{name}{end}" for name in LOOPBACK_HOSTS), False)
    origin = public_origin(public_url or "")
    if origin is None:
        raise ExposedWithoutSignIn(
            "Beyond this machine the pages need --public-url https://…, the address that browsers use, and "
            "a proxy in front of them that ends TLS."
        )
    if not has_sign_in:
        raise ExposedWithoutSignIn(
            "Beyond this machine people must sign in: make a login with finora login add, or set "
            "FINORA_OIDC_ISSUER and FINORA_OIDC_CLIENT_ID."
        )
    return Exposure(frozenset([origin]), True)
