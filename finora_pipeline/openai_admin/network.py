"""The network settings of the environment: the proxy to OpenAI and the trusted certificates.

The variables are those that other tools use: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (also in
lower case), `SSL_CERT_FILE`, `SSL_CERT_DIR` and `REQUESTS_CA_BUNDLE`. Requests to this machine never use a
proxy.
"""

import base64
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import certifi

from finora_pipeline.openai_admin.addresses import BaseAddress

_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


class NetworkError(ValueError):
    """An invalid network setting. The message is one sentence without passwords."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy: `url` and `authority` (host and port) without user name and password.

    `authorization`: the value of the Proxy-Authorization header, or None.
    """

    url: str
    authority: str
    authorization: str | None = field(repr=False, default=None)


def proxy_for(address: BaseAddress, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy for an address; None for a direct connection. Raises `NetworkError`."""
    if address.is_loopback:
        return None
    names = (f"{address.scheme}_proxy", "all_proxy")
    spelled = [spelling for name in names for spelling in (name, name.upper())]
    name = next((name for name in spelled if environment.get(name)), None)
    excepted = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if name is None or any(_is_excepted(address, one.strip().lower()) for one in excepted.split(",")):
        return None
    return _proxy(environment[name], name.upper())


def _is_excepted(address: BaseAddress, pattern: str) -> bool:
    """Whether a NO_PROXY entry matches: `*`, a host or domain (port optional), or an IP network."""
    name, _, port = pattern.rpartition(":")
    if name and port.isdigit():
        if int(port) != address.port:
            return False
        pattern = name
    pattern = pattern.strip("[]").removeprefix("*.").removeprefix(".")
    if pattern in ("*", address.host) or (pattern and address.host.endswith(f".{pattern}")):
        return True
    try:
        return ipaddress.ip_address(address.host) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False


def _proxy(url: str, name: str) -> Proxy:
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        raise NetworkError(f"{name} must be an address like http://proxy.example.com:3128.") from None
    if scheme.startswith("socks"):
        raise NetworkError(f"{name} names a SOCKS proxy, which is not supported: use an HTTP proxy.")
    if scheme not in ("http", "https") or not host or not whole.isprintable():
        raise NetworkError(f"{name} must be an address like http://proxy.example.com:3128.")
    authority = f"{host if ':' not in host else f'[{host}]'}:{port or (443 if scheme == 'https' else 80)}"
    authorization = None
    if parts.username is not None:
        signed = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"Basic {base64.b64encode(signed).decode()}"
    return Proxy(f"{scheme}://{authority}", authority, authorization)


def trusted_certificates(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """The certificates that TLS connections trust: the environment's, else those of certifi.

    Raises `NetworkError` if they cannot be read.
    """
    given = ((name, environment.get(name)) for name in _CERTIFICATE_VARIABLES)
    name, path = next(((name, path) for name, path in given if path), ("", ""))
    return _context(name, path)


@lru_cache(maxsize=4)
def _context(name: str, path: str) -> ssl.SSLContext:
    # Cached: reading the certificates takes about 18 ms, for each client.
    if not name:
        return ssl.create_default_context(cafile=certifi.where())
    is_folder = Path(path.split(os.pathsep)[0]).is_dir()
    try:
        if is_folder:
            return ssl.create_default_context(capath=path)
        if name == "SSL_CERT_DIR":
            raise FileNotFoundError(path)
        return ssl.create_default_context(cafile=path)
    except (OSError, ValueError):
        raise NetworkError(
            f"The certificates of {name} could not be read from {path}. Correct that setting."
        ) from None
