"""Sign-in through an identity provider: what is sent, and which responses are accepted."""

import base64
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from finora_pipeline.dashboard.security.oidc import Oidc, OidcError
from finora_pipeline.openai_simulator.server import listen
from finora_pipeline.settings import Settings
from tests.dashboard.served import PUBLIC_URL, Served, dashboard, on_loopback, read_html

CLIENT, SECRET = "finora", "a-client-secret-for-tests-only"
ADA = "ada@acme.example"
NOT_CONFIRMED = "The identity provider did not confirm the sign-in. Sign in again."
NOT_REACHED = "We couldn’t reach the identity provider. Try again later."
NOT_VERIFIED = "The identity provider sent no verified e-mail address."


@dataclass
class Provider:
    """A small OpenID provider.

    `claims` replace those of the token, `is_down` makes it fail, `signed_by` and `algorithm` break its
    signature.
    """

    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    is_down: bool = False
    has_id_token: bool = True
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "1"}))
    signed_by: ECKey | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        routes = [
            Route("/.well-known/openid-configuration", self.metadata),
            Route("/keys", lambda _: JSONResponse({"keys": [self.key.as_dict(private=False)]})),
            Route("/authorize", self.authorize),
            Route("/token", self.token, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    def metadata(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "id_token_signing_alg_values_supported": ["ES256"],
            }
        )

    def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.asked.append(asked)
        code = f"code-{len(self.asked)}"
        self.codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?code={code}&state={asked['state']}", 302)

    async def token(self, request: Request) -> Response:
        if self.is_down:
            return Response("down", 503)
        form = await request.form()
        # A code serves once.
        asked = self.codes.pop(str(form.get("code")), None)
        basic = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        digest = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or basic != f"{CLIENT}:{SECRET}" or challenge != asked["code_challenge"]:
            self.refused.append(str(form.get("code")))
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 60, "nonce": asked["nonce"],
            "email": ADA, "email_verified": True,
        } | self.claims  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        signed = jwt.encode({"alg": "ES256", "kid": "1"}, claims, self.signed_by or self.key)
        answer: dict[str, Any] = {"access_token": "an-access-token", "token_type": "Bearer", "expires_in": 60}
        return JSONResponse(answer | ({"id_token": signed} if self.has_id_token else {}))


@pytest.fixture(scope="module")
def running_provider() -> Iterator[Provider]:
    provider = Provider()
    with on_loopback(provider.app, listen()) as provider.url:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    """A working provider."""
    fresh = Provider()
    for name in ("claims", "is_down", "has_id_token", "signed_by", "asked", "codes", "refused"):
        setattr(running_provider, name, getattr(fresh, name))
    return running_provider


@pytest.fixture(scope="module")
def served(running_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path_factory.mktemp("oidc"))})
    with dashboard(settings, oidc=Oidc(running_provider.url, CLIENT, SECRET), by_link=False) as served:
        served.sign_in.save(ADA, user_id="acme", password=None)
        yield served


def begin(served: Served, after: str = "/") -> tuple[str, dict[str, str]]:
    """Start a sign-in; return the provider's address and the browser's cookie."""
    answer = served.browser.get("/sign-in/oidc", params={"next": after})
    served.browser.cookies.clear()
    assert answer.status_code == 302
    return answer.headers["location"], {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def back(served: Served, after: str = "/") -> tuple[str, dict[str, str]]:
    """Return the provider's redirect back, and the browser's cookie."""
    address, cookie = begin(served, after)
    returned = urlsplit(served.get(address).headers["location"])
    assert f"{returned.scheme}://{returned.netloc}" == served.url
    return f"{returned.path}?{returned.query}", cookie


def come(served: Served, path: str, cookie: dict[str, str]) -> httpx.Response:
    answer = served.browser.get(path, headers=cookie)
    served.browser.cookies.clear()
    return answer


def session_of(answer: httpx.Response) -> str | None:
    values = answer.headers.get_list("set-cookie")
    return next((value.partition(";")[0] for value in values if value.startswith("finora=")), None)


def assert_refused(answer: httpx.Response, status: int, line: str) -> None:
    assert answer.status_code == status
    assert read_html(answer.text).one("div", class_="error").text == line
    assert session_of(answer) is None


def test_a_verified_address_with_a_login_signs_in(
    provider: Provider, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    address, cookie = begin(served, "/users/acme/plan")
    assert address.startswith(f"{provider.url}/authorize?")
    returned = served.get(address).headers["location"].removeprefix(served.url)
    answer = come(served, returned, cookie)
    assert (answer.status_code, answer.headers["location"]) == (303, "/users/acme/plan")
    session = session_of(answer)
    assert session
    page = served.page("/users/acme/plan", headers={"Cookie": session})
    assert page.one("details", class_="menu").one("summary").text == ADA

    (asked,) = provider.asked
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == f"{served.url}/sign-in/oidc/callback"
    assert set(asked["scope"].split()) == {"openid", "email"}
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 20
    assert provider.refused == []
    seen = f"{address}{answer.headers}{answer.text}{page}"
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("finora"))
    for text in (seen, ours, caplog.text):
        assert SECRET not in text
        assert base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode() not in text
        assert "an-access-token" not in text

    # Neither the code nor the state works twice.
    assert_refused(come(served, returned, cookie), 401, NOT_CONFIRMED)


def test_each_sign_in_uses_a_fresh_state_and_nonce(provider: Provider, served: Served) -> None:
    first, second = (dict(parse_qsl(urlsplit(begin(served)[0]).query)) for _ in range(2))
    for name in ("state", "nonce", "code_challenge"):
        assert first[name] != second[name]
    assert provider.refused == []


def test_an_unrequested_callback_is_refused(provider: Provider, served: Served) -> None:
    path, cookie = back(served)
    code = parse_qs(urlsplit(path).query)["code"][0]
    for forged in (
        f"/sign-in/oidc/callback?code={code}&state=another",
        f"/sign-in/oidc/callback?code={code}",
        "/sign-in/oidc/callback",
        "/sign-in/oidc/callback?error=access_denied&error_description=%3Cb%3E",
    ):
        assert_refused(come(served, forged, cookie), 401, NOT_CONFIRMED)
    # The same redirect in another browser, which would get another person's session.
    assert_refused(come(served, path, {}), 401, NOT_CONFIRMED)
    assert_refused(come(served, path, begin(served)[1]), 401, NOT_CONFIRMED)
    assert provider.codes


def test_a_callback_cannot_forge_log_lines(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    said = "no%0D%0A2026-11-27 ERROR forged%1B[2J%E2%80%A8end"
    path = f"/sign-in/oidc/callback?error=denied%0A&error_description={said}"
    assert_refused(come(served, path, begin(served)[1]), 401, NOT_CONFIRMED)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "finora.dashboard"]
    assert "ERROR forged" in line
    assert line.isprintable()


def test_the_verifier_of_another_sign_in_is_refused(provider: Provider, served: Served) -> None:
    path, cookie = back(served)
    (code,) = provider.codes
    # As if the code had been stolen from another sign-in.
    provider.codes[code]["code_challenge"] = "another"
    assert_refused(come(served, path, cookie), 401, NOT_CONFIRMED)
    assert provider.refused == [code]


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"aud": ["another"], "azp": CLIENT},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"exp": 1},
    ],
    ids=str,
)
def test_a_token_of_another_sign_in_is_refused(
    claims: dict[str, Any], provider: Provider, served: Served
) -> None:
    provider.claims = claims
    assert_refused(come(served, *back(served)), 401, NOT_CONFIRMED)


def test_a_forged_signature_is_refused(provider: Provider, served: Served) -> None:
    provider.signed_by = ECKey.generate_key("P-256", {"kid": "1"})
    assert_refused(come(served, *back(served)), 401, NOT_CONFIRMED)


@pytest.mark.parametrize(
    "claims",
    [{"email_verified": False}, {"email_verified": None}, {"email_verified": "true"}, {"email": None}],
    ids=str,
)
def test_an_unverified_address_is_refused(claims: dict[str, Any], provider: Provider, served: Served) -> None:
    provider.claims = claims
    assert_refused(come(served, *back(served)), 401, NOT_VERIFIED)


def test_a_callback_without_an_id_token_is_refused(provider: Provider, served: Served) -> None:
    provider.has_id_token = False
    assert_refused(come(served, *back(served)), 401, NOT_VERIFIED)


@pytest.mark.parametrize("email", ["eve@evil.example", "<b>eve</b>@evil.example", "\0"])
def test_an_address_without_a_login_is_refused(email: str, provider: Provider, served: Served) -> None:
    provider.claims = {"email": email}
    answer = come(served, *back(served))
    assert answer.status_code == 403
    assert session_of(answer) is None
    assert "No account for" in answer.text
    assert "<b>eve" not in answer.text


def test_a_login_without_a_password_signs_in_by_provider_alone(served: Served) -> None:
    assert served.post("/sign-in", {"name": ADA, "password": ""}).status_code == 401
    assert "Single sign-on" in served.get("/sign-in").text


def test_a_provider_failure_is_shown(provider: Provider, served: Served, tmp_path: Path) -> None:
    path, cookie = back(served)
    provider.is_down = True
    assert_refused(come(served, path, cookie), 401, NOT_REACHED)
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings, oidc=Oidc("http://127.0.0.1:9", CLIENT, SECRET), by_link=False) as alone:
        assert_refused(alone.get("/sign-in/oidc"), 502, NOT_REACHED)
        # Without a login it signs no one in.
        assert alone.get("/users/my-company/overview").status_code == 303


def test_no_next_parameter_leads_to_another_site(provider: Provider, served: Served) -> None:
    answer = come(served, *back(served, "//evil.example"))
    assert answer.headers["location"] == "/"
    assert provider.refused == []


def test_the_callback_uses_the_public_address(provider: Provider, tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings, PUBLIC_URL, Oidc(provider.url, CLIENT, SECRET)) as served:
        answer = served.get("/sign-in/oidc")
    asked = dict(parse_qsl(urlsplit(answer.headers["location"]).query))
    assert asked["redirect_uri"] == f"{PUBLIC_URL}/sign-in/oidc/callback"
    attributes = {one.strip() for one in answer.headers["set-cookie"].lower().split(";")}
    assert {"secure", "httponly", "samesite=lax", "path=/sign-in"} <= attributes


def test_without_a_provider_its_pages_are_not_found(closed: Served) -> None:
    for path in ("/sign-in/oidc", "/sign-in/oidc/callback"):
        assert closed.get(path).status_code == 404
    assert "Single sign-on" not in closed.get("/sign-in").text


def test_half_a_registration_is_refused() -> None:
    issuer, client = {"FINORA_OIDC_ISSUER": "https://login.example.com"}, {"FINORA_OIDC_CLIENT_ID": CLIENT}
    assert Oidc.from_environment({}) is None
    assert Oidc.from_environment(issuer | client) is not None
    for half in (issuer, client):
        with pytest.raises(OidcError, match="Set both"):
            Oidc.from_environment(half)
