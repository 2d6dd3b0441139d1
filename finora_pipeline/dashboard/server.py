"""Check whether the dashboard may be served, and run it under uvicorn."""

import sys

import uvicorn
from starlette.applications import Starlette

from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.dashboard import http_server
from finora_pipeline.dashboard.app import create_app
from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.dashboard.security.exposure import ExposedWithoutSignIn, exposure
from finora_pipeline.dashboard.security.oidc import Oidc, OidcError
from finora_pipeline.settings import Settings


class DashboardRefused(Exception):
    """The settings do not allow to serve the dashboard; the message says what to do."""


def prepared(
    settings: Settings, host: str, port: int, public_url: str | None, access: Access | None = None
) -> Starlette:
    """Build the app. Raises `DashboardRefused`, `VaultError`, `SettingsError`."""
    accounts = accounts_of(settings)
    logins = accounts.logins
    try:
        oidc = Oidc.from_environment()
        if oidc is None and not settings.password_sign_in:
            raise DashboardRefused(
                "FINORA_PASSWORD_SIGN_IN=off needs single sign-on: set FINORA_OIDC_ISSUER and "
                "FINORA_OIDC_CLIENT_ID."
            )
        exposed = exposure(host, port, public_url, oidc is not None or logins.is_configured())
    except (ExposedWithoutSignIn, OidcError) as error:
        raise DashboardRefused(str(error)) from None
    return create_app(settings, accounts, logins, exposed, access or Access.from_environment(), oidc)


def serve(settings: Settings, host: str, port: int, public_url: str | None, access: Access) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Raises `DashboardRefused`, `VaultError`, `SettingsError`.
    """
    # DuckDB imports pandas (90 MB with its imports) only to check whether a parameter is one of its types.
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]
    app = prepared(settings, host, port, public_url, access)
    uvicorn.Server(http_server.config(app, host=host, port=port)).run()
