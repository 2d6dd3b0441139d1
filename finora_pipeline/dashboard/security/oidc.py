"""Sign-in with an identity provider: OpenID Connect with state, nonce and PKCE, by Authlib."""

import os
import ssl
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

ISSUER = "FINORA_OIDC_ISSUER"
CLIENT_ID = "FINORA_OIDC_CLIENT_ID"
CLIENT_SECRET = "FINORA_OIDC_CLIENT_SECRET"


class OidcError(Exception):
    """The identity provider did not confirm a sign-in; the message is a sentence for the person."""


class Oidc:
    """An identity provider and this server's registration with it."""

    def __init__(self, issuer: str, client_id: str, client_secret: str | None) -> None:
        from authlib.integrations.starlette_client import OAuth

        oauth = OAuth()
        oauth.register(
            "provider",
            client_id=client_id,
            client_secret=client_secret,
            server_metadata_url=f"{issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid email",
                "code_challenge_method": "S256",
                # Made once: reading all certificates for each request would block the event loop.
                "verify": ssl.create_default_context(),
            },
        )
        self._provider: Any = oauth.create_client("provider")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Oidc | None":
        """The provider that the environment names, or None.

        Raises `OidcError` for half a registration.
        """
        issuer, client_id = environment.get(ISSUER), environment.get(CLIENT_ID)
        if bool(issuer) != bool(client_id):
            raise OidcError(f"Set both {ISSUER} and {CLIENT_ID}, or neither.")
        return cls(issuer, client_id, environment.get(CLIENT_SECRET)) if issuer and client_id else None

    async def begin(self, request: Request, callback: str) -> Response:
        """Redirect the browser to the provider. Raises `OidcError`."""
        try:
            return await self._provider.authorize_redirect(request, callback)
        except Exception as error:
            raise OidcError("We couldn’t reach the identity provider. Try again later.") from error

    async def email(self, request: Request) -> str:
        """The verified e-mail address in the provider's answer. Raises `OidcError`."""
        from authlib.common.errors import AuthlibBaseError
        from joserfc.errors import JoseError

        try:
            token = await self._provider.authorize_access_token(request)
        except (AuthlibBaseError, JoseError) as error:
            raise OidcError("The identity provider did not confirm the sign-in. Sign in again.") from error
        except Exception as error:
            raise OidcError("We couldn’t reach the identity provider. Try again later.") from error
        claims = token.get("userinfo") or {}
        # Authlib accepts a token of another audience whose authorized party is this client.
        if claims and self._provider.client_id not in _as_list(claims["aud"]):
            raise OidcError("The identity provider did not confirm the sign-in. Sign in again.")
        if not claims.get("email") or claims.get("email_verified") is not True:
            raise OidcError("The identity provider sent no verified e-mail address.")
        return str(claims["email"])


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
