"""Base addresses of OpenAI's API that may receive an Admin key, and a key's bond to one.

A key is checked against one address and stored with that address's `bound_form`; after that, no request with
the key goes to another address. The simulator uses a free port at each start, so the bound form of a loopback
address has no port.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

OPENAI_BASE_URL = "https://api.openai.com/v1"
# The default host and the hosts for data residency, as listed in the official SDK (3.57).
OPENAI_HOSTS = frozenset(
    {"api.openai.com", *(f"{region}.api.openai.com" for region in ("us", "eu", "ae", "au", "in", "jp"))}
)
_DEFAULT_PORTS = {"https": 443, "http": 80}
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/v1")
_LONGEST = 500


class AddressError(ValueError):
    """The address may not receive an Admin key; the message says what to change."""


@dataclass(frozen=True, slots=True)
class BaseAddress:
    """A checked, normalized base address of OpenAI's organization API; `str` gives the URL.

    `host` is lower case, without the brackets of IPv6; `path` ends with `/v1`.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_loopback(self) -> bool:
        """Whether requests stay on this machine."""
        return _is_loopback(self.host)

    @property
    def is_openai(self) -> bool:
        """Whether the host is OpenAI's own, regional hosts included."""
        return self.scheme == "https" and self.host in OPENAI_HOSTS and self.port == 443

    @property
    def bound_form(self) -> str:
        """The text stored with a connection; addresses with equal texts may receive the same key."""
        if self.is_loopback:
            return f"{self.scheme}://127.0.0.1{self.path}"
        return str(self)

    @property
    def authority(self) -> str:
        """Host and port for people; the port only where it is not the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_address(text: str) -> BaseAddress:
    """Parse an address from a person or a setting; a trailing slash and blanks are dropped.

    https may lead to any host, http only to this machine. Raises `AddressError`.
    """
    text = text.strip()
    if not text or len(text) > _LONGEST or not text.isprintable() or re.search(r"[\s\\]", text):
        raise AddressError(f"An API address looks like {OPENAI_BASE_URL}.")
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        raise AddressError(f"An API address looks like {OPENAI_BASE_URL}.") from None
    if scheme not in _DEFAULT_PORTS or not host or port == 0:
        raise AddressError(f"An API address looks like {OPENAI_BASE_URL}.")
    if "@" in parts.netloc:
        raise AddressError("The API address must not contain a user name or password: remove them.")
    if "?" in text or "#" in text:
        raise AddressError("The API address must not contain a query or fragment: end it after /v1.")
    host = _checked_host(host)
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path):
        raise AddressError(f"The API address must end with its version, as in {OPENAI_BASE_URL}.")
    if scheme == "http" and not _is_loopback(host):
        raise AddressError(f"Use https for {host}: over http others could read the key in transit.")
    return BaseAddress(scheme, host, _DEFAULT_PORTS[scheme] if port is None else port, path)


def is_openai(address: BaseAddress | str) -> bool:
    """Whether an address is OpenAI's own. Raises `AddressError`."""
    return _parsed(address).is_openai


def is_loopback(address: BaseAddress | str) -> bool:
    """Whether requests to an address stay on this machine. Raises `AddressError`."""
    return _parsed(address).is_loopback


def bound_form(address: BaseAddress | str) -> str:
    """The text that binds a key to an address; `parse_address` parses it. Raises `AddressError`."""
    return _parsed(address).bound_form


def _parsed(address: BaseAddress | str) -> BaseAddress:
    return parse_address(address) if isinstance(address, str) else address


def _checked_host(host: str) -> str:
    """A host in lower-case ASCII without a trailing dot. Raises `AddressError`."""
    if ":" in host:
        try:
            if "%" in host:
                raise ValueError("A zone names a network of this machine only.")
            return ipaddress.IPv6Address(host).compressed
        except ValueError:
            raise AddressError("The API address contains a malformed IPv6 address.") from None
    try:
        name = host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        name = ""
    name = name.lower().removesuffix(".")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise AddressError("The API address contains a malformed host name.")
    return name


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
