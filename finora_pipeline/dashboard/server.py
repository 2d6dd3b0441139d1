"""Runs the dashboard under uvicorn."""

import sys

from starlette.applications import Starlette

from finora_pipeline.accounts.sign_in import SignIn
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.dashboard.app import ExposedWithoutSignIn, create_app, exposure
from finora_pipeline.dashboard.oidc import Oidc, OidcError
from finora_pipeline.settings import Settings


class DashboardRefused(Exception):
    """The dashboard cannot be served like this; the message says what to do."""


def prepared(settings: Settings, host: str, port: int, public_url: str | None) -> Starlette:
    """The app, ready to be served. Raises `DashboardRefused`, `VaultError`."""
    accounts = accounts_of(settings)
    sign_in = SignIn(accounts.database)
    try:
        oidc = Oidc.from_environment()
        exposed = exposure(host, port, public_url, oidc is not None or sign_in.is_configured())
    except (ExposedWithoutSignIn, OidcError) as error:
        raise DashboardRefused(str(error)) from None
    return create_app(settings, accounts, sign_in, exposed, oidc)


def serve(settings: Settings, host: str, port: int, public_url: str | None) -> None:
    """Serves the pages until SIGINT or SIGTERM. Raises `DashboardRefused`, `VaultError`."""
    import uvicorn

    # DuckDB imports pandas, 90 MB with all it needs, only to see whether a parameter is one of its values.
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]
    app = prepared(settings, host, port, public_url)
    # Who asks for what is no business of a log, and a proxy's word for who it is is not taken.
    quiet = {"access_log": False, "log_level": "warning", "proxy_headers": False, "server_header": False}
    uvicorn.run(app, host=host, port=port, **quiet)
