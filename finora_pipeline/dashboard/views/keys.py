"""Settings → API Keys: connect an organization, replace or remove its key, recent activity."""

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finora_pipeline.accounts.actors import acting_as
from finora_pipeline.accounts.logins import Login
from finora_pipeline.accounts.model import AccountsError, Connection, OtherOrganization, Status
from finora_pipeline.accounts.vault import VaultError
from finora_pipeline.dashboard.notices import freshness
from finora_pipeline.dashboard.security.permissions import for_user
from finora_pipeline.dashboard.site import Site, form_fields, user_path
from finora_pipeline.openai_admin.addresses import AddressError
from finora_pipeline.openai_admin.errors import (
    OpenAIAdminError,
    PermanentError,
    Unreachable,
    UnreadableResponse,
)
from finora_pipeline.openai_admin.keys import KeyFormError

# OpenAI's regional addresses. Others are set by command only: visitors must not choose the hosts that this
# server connects to.
REGIONS = {region: f"https://{region}.api.openai.com/v1" for region in ("us", "eu", "ae", "au", "in", "jp")}
# Rows of the audit trail on the page, and the name of each action there.
EVENTS_SHOWN = 20
EVENT_NAMES = {
    "active": "Works again",
    "bind address": "Key bound to an address",
    "connect": "OpenAI connected",
    "key use": "Key used by a refresh",
    "needs attention": "Needs attention",
    "plan": "Plan changed",
    "remove": "Key removed",
    "replace organization": "Organization replaced",
    "second factor off": "Second factor switched off",
    "second factor on": "Second factor switched on",
    "sign-in": "Signed in",
    "sign-in refused": "Sign-in slowed down",
    "update": "Key updated",
}
# Details of the other actions repeat the key and state at the top of the page.
DETAILED_EVENTS = frozenset(("plan", "replace organization", "sign-in", "sign-in refused"))
_log = logging.getLogger("finora.dashboard")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a key was not saved: title, sentence, and whether switching organizations may help."""

    title: str
    text: str
    may_switch: bool = False


@for_user
def keys(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """The page with the connection, the form for a key and the recent activity."""
    return _keys_page(site, request, login, user_id)


def _keys_page(
    site: Site, request: Request, login: Login, user_id: str, refusal: Refusal | None = None
) -> Response:
    connection, failure = site.connection_of(user_id)
    now = datetime.now(UTC)
    old_key = request.query_params.get("old", "")
    return site.render(
        request,
        "keys.html",
        login,
        422 if refusal else 200,
        user_id=user_id,
        connection=connection,
        is_connected=connection is not None and connection.status is not Status.REMOVED,
        is_active=connection is not None and connection.status is Status.ACTIVE,
        failure=failure,
        parts=site.accounts.refreshes.part_failures([user_id]).get(user_id, []),
        expiry=connection.expiry_warning(now) if connection else None,
        freshness=freshness(connection, now),
        refusal=refusal,
        saved=request.query_params.get("saved", "") if refusal is None else "",
        old_key=old_key if re.fullmatch("[A-Za-z0-9_-]{4}", old_key) else "",
        wants_update=request.query_params.get("update") == "yes" or refusal is not None,
        regions=REGIONS,
        events=site.accounts.audit.recent(user_id, EVENTS_SHOWN),
        event_names=EVENT_NAMES,
        detailed_events=DETAILED_EVENTS,
    )


@for_user
async def save_key(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """Check the key with OpenAI and store it, for a new connection or in place of the old key."""
    form = await form_fields(request)
    # Imported at the first save: the client of OpenAI takes memory that the pages do not need.
    from finora_pipeline.accounts import onboarding

    try:
        if form.get("provider") != "openai":
            raise AccountsError("Choose a provider. Only OpenAI is supported.")
        region = form.get("region", "")
        if region and region not in REGIONS:
            raise AccountsError("Choose one of OpenAI’s regions from the list.")
        with acting_as(login.name):
            before, after = await onboarding.save_key(
                site.accounts,
                user_id,
                form.get("key", ""),
                base_url=REGIONS.get(region),
                configured=site.settings.openai_base_url,
                replace_organization=form.get("replace_organization") == "yes",
            )
    except (KeyFormError, OpenAIAdminError, AccountsError, VaultError, AddressError) as error:
        refusal = _refusal(user_id, error)
        return await run_in_threadpool(_keys_page, site, request, login, user_id, refusal)
    _log.info("User %s %s OpenAI.", user_id, "updated" if _is_stored(before) else "connected")
    return RedirectResponse(user_path(user_id, f"settings/keys?saved={_saved(before, after)}"), 303)


def _is_stored(connection: Connection | None) -> bool:
    return connection is not None and connection.status is not Status.REMOVED


def _saved(before: Connection | None, after: Connection) -> str:
    """What the page says about the saved key, as its query carries it."""
    if before is None or before.status is Status.REMOVED:
        return "connected"
    if before.key_hint == after.key_hint:
        return "same"
    return f"updated&old={before.key_hint[-4:]}"


def _refusal(user_id: str, error: Exception) -> Refusal:
    """The words for what kept a key from being saved."""
    match error:
        case OtherOrganization():
            return Refusal("The organization does not match.", str(error), may_switch=True)
        case KeyFormError() | PermanentError():
            return Refusal("This key doesn’t work.", str(error))
        case UnreadableResponse():
            _log.warning("The key of user %s was not checked: %s", user_id, error)
            text = "Your key may be fine; try again in a few minutes."
            return Refusal("OpenAI sent an unexpected reply.", text)
        case Unreachable():
            return Refusal("We couldn’t reach OpenAI.", str(error))
        case OpenAIAdminError():
            return Refusal("OpenAI refused the request.", str(error))
        case _:
            return Refusal("The key was not saved.", str(error))


@for_user
def confirm_removal(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """The page that asks before the stored key is deleted."""
    return _removal_page(site, request, login, user_id)


def _removal_page(
    site: Site, request: Request, login: Login, user_id: str, error: str | None = None
) -> Response:
    connection = site.accounts.connections.get(user_id)
    if connection is None or connection.status is Status.REMOVED:
        return RedirectResponse(user_path(user_id, "settings/keys"), 303)
    return site.render(
        request,
        "remove.html",
        login,
        409 if error else 200,
        user_id=user_id,
        connection=connection,
        error=error,
    )


@for_user
async def remove_key(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """Delete the stored key, unless it was replaced since the page was shown (409)."""
    seen = (await form_fields(request)).get("key_version", "")
    version = int(seen) if re.fullmatch("[0-9]{1,10}", seen) else None
    try:
        with acting_as(login.name):
            await run_in_threadpool(site.accounts.connections.remove, user_id, version)
    except AccountsError as error:
        return await run_in_threadpool(_removal_page, site, request, login, user_id, str(error))
    return RedirectResponse(user_path(user_id, "settings/keys?saved=removed"), 303)
