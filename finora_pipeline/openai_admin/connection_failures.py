"""Errors for requests without an answer: one sentence per kind of failure, naming the host."""

import errno

import aiohttp

from finora_pipeline.openai_admin.addresses import BaseAddress
from finora_pipeline.openai_admin.errors import (
    CertificateRejected,
    ConnectionRefused,
    NameNotFound,
    ProxyFailed,
    TimedOut,
    TransientError,
    Unreachable,
)
from finora_pipeline.openai_admin.network import Proxy

# Verification codes of OpenSSL.
_EXPIRED, _OTHER_NAME = (9, 10), (62, 64)
_LEAD = "OpenAI could not be reached:"


def timed_out(address: BaseAddress, seconds: float) -> TimedOut:
    """The error for an answer that was not complete within so many seconds."""
    return TimedOut(
        f"OpenAI did not answer within {seconds:g} s ({address.authority}). It usually answers later."
    )


def failure_of(
    error: BaseException, address: BaseAddress, proxy: Proxy | None, timeout_seconds: float
) -> TransientError:
    """The error for a failed connection; `error` is the one that aiohttp raised."""
    host = address.authority
    if proxy and (failure := _of_proxy(error, address, proxy)):
        return failure
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(error, host if error.host == address.host else f"{error.host}:{error.port}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return NameNotFound(f"{_LEAD} the name {error.host} could not be resolved. Check this server's DNS.")
    if isinstance(error, TimeoutError):
        return timed_out(address, timeout_seconds)
    if isinstance(error, aiohttp.ClientSSLError):
        return Unreachable(
            f"{_LEAD} {host} does not answer as a TLS server. Check the API address and proxy."
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return _not_connected(error.os_error, host)
    return Unreachable(f"{_LEAD} the connection to {host} broke. It usually works later.")


def _of_proxy(error: BaseException, address: BaseAddress, proxy: Proxy) -> ProxyFailed | None:
    """The error for a failure of the proxy itself, or None."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        if error.status == 407:
            advice = "requires a user name and password. Add them to HTTPS_PROXY."
        else:
            advice = f"refuses to connect to {address.authority}. Ask your network's administrator."
        return ProxyFailed(
            f"{_LEAD} the proxy {proxy.authority} answered {error.status} and {advice}", status=error.status
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return ProxyFailed(f"{_LEAD} the proxy {proxy.authority} does not answer. Correct HTTPS_PROXY.")
    if isinstance(error, aiohttp.ClientConnectorDNSError) and error.host != address.host:
        return ProxyFailed(
            f"{_LEAD} the proxy's name {error.host} could not be resolved. Correct HTTPS_PROXY."
        )
    return None


def _not_connected(error: OSError, host: str) -> TransientError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Unreachable(
            f"{_LEAD} too many files are open. Lower FINORA_REQUESTS_AT_ONCE or raise ulimit -n."
        )
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        return ConnectionRefused(
            f"{_LEAD} this network has no route to {host}. Check the network, or set HTTPS_PROXY."
        )
    return ConnectionRefused(f"{_LEAD} {host} refused the connection. Check the network and the API address.")


def _untrusted(error: aiohttp.ClientConnectorCertificateError, host: str) -> CertificateRejected:
    code = getattr(error.certificate_error, "verify_code", None)
    if code in _EXPIRED:
        return CertificateRejected(
            f"The certificate of {host} has expired or is not valid yet. Check this server's clock."
        )
    if code in _OTHER_NAME:
        return CertificateRejected(
            f"The certificate of {host} is for another name. Check the API address and the proxy."
        )
    return CertificateRejected(
        f"The certificate of {host} is signed by an authority that this server does not know. If your "
        "network inspects TLS, set SSL_CERT_FILE to a file with your company's CA certificate."
    )
