"""Where a server answers: on this machine, or behind a proxy under a public address."""

from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class ExposedWithoutSignIn(Exception):
    """The server would be reachable by others without a way to sign in; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """The addresses that a server has for a browser, and whether others than this machine's may come."""

    origins: frozenset[str]
    is_public: bool


def session_cookie(*, is_public: bool) -> str:
    """The cookie of a session. Browsers keep the public one to this host and to https."""
    return "__Host-finora" if is_public else "finora"


def public_origin(public_url: str) -> str | None:
    """The origin of an https address without a path, as browsers write it; None for another address."""
    address = urlsplit(public_url)
    if address.scheme != "https" or not address.netloc or address.path not in ("", "/"):
        return None
    return f"https://{address.netloc.lower().removesuffix(':443')}"


def exposure(host: str, port: int, public_url: str | None, has_sign_in: bool) -> Exposure:
    """Who may come, from where the server binds and the address it is known by.

    Raises `ExposedWithoutSignIn`.
    """
    is_loopback = host in ("127.0.0.1", "::1", "localhost")
    if is_loopback and public_url is None:
        # As a browser names them: without the port that is usual.
        end = "" if port == 80 else f":{port}"
        return Exposure(frozenset(f"http://{name}{end}" for name in LOOPBACK_HOSTS), False)
    origin = public_origin(public_url or "")
    if origin is None:
        raise ExposedWithoutSignIn(
            "Beyond this machine the pages need --public-url https://…, the address that browsers know; a "
            "proxy that ends TLS stands before them."
        )
    if not has_sign_in:
        raise ExposedWithoutSignIn(
            "Beyond this machine people must sign in: make a login with finora login add, or set "
            "FINORA_OIDC_ISSUER and FINORA_OIDC_CLIENT_ID."
        )
    return Exposure(frozenset([origin]), True)
