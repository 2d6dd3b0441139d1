"""Second factors, and sign-ins in the audit trail."""

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from click.testing import CliRunner

from finora_pipeline.accounts.actors import OPERATORS
from finora_pipeline.accounts.logins import Login
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import main
from finora_pipeline.dashboard.security.pending_sign_ins import (
    MOST_TRIES,
    SECONDS,
    PendingSignIn,
    PendingSignIns,
)
from finora_pipeline.dashboard.security.throttle import FREE_FAILURES, Attempt
from finora_pipeline.dashboard.server import DashboardRefused, prepared
from finora_pipeline.settings import Settings, SettingsError
from tests.dashboard.conftest import PASSWORD
from tests.dashboard.served import ACCESS_TOKEN, PUBLIC_URL, Served, dashboard, read_html

OPERATOR, ADA = "ops@finora.example", "ada@acme.example"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path / "home")})
    with dashboard(settings, by_link=False) as served:
        served.sign_in.save(OPERATOR, user_id=None, password=PASSWORD)
        served.accounts.users.add("acme", "growth")
        served.sign_in.save(ADA, user_id="acme", password=PASSWORD)
        yield served


def code_of(secret: str, moment: datetime) -> str:
    """Return the code of an authenticator app (RFC 6238)."""
    step = struct.pack(">Q", int(moment.timestamp()) // 30)
    digest = hmac.new(base64.b32decode(secret), step, hashlib.sha1).digest()
    offset = digest[-1] & 15
    return f"{(struct.unpack('>I', digest[offset : offset + 4])[0] & 0x7FFFFFFF) % 1_000_000:06}"


def with_password(served: Served, name: str = OPERATOR) -> httpx.Response:
    return served.post("/sign-in", {"name": name, "password": PASSWORD, "next": "/users?q=x"})


def pending(answer: httpx.Response) -> str:
    assert answer.status_code in (200, 401)
    assert "set-cookie" not in answer.headers
    value = read_html(answer.text).one("input", name="pending").attributes["value"]
    assert value
    return value


def trail(served: Served, user_id: str) -> list[tuple[str, str | None, str | None]]:
    return [(one.action, one.detail, one.actor) for one in served.accounts.audit.of_user(user_id)]


def test_sign_in_asks_for_the_code_of_the_app(served: Served) -> None:
    secret = served.accounts.second_factor.turn_on(OPERATOR).secret
    token = pending(with_password(served))
    # The password alone opens nothing.
    assert served.get("/users").status_code == 303
    wrong = served.post("/sign-in/code", {"pending": token, "code": "12345x"})
    assert wrong.status_code == 401
    assert "The code is wrong or was used before" in wrong.text
    code = code_of(secret, datetime.now(UTC))
    right = served.post("/sign-in/code", {"pending": token, "code": f" {code[:3]} {code[3:]}"})
    assert (right.status_code, right.headers["location"]) == (303, "/users?q=x")
    session = {"Cookie": right.headers["set-cookie"].partition(";")[0]}
    assert served.get("/users", headers=session).status_code == 200
    served.browser.cookies.clear()
    # Neither the form nor the code works twice.
    assert served.post("/sign-in/code", {"pending": token, "code": code}).status_code == 401
    again = served.post("/sign-in/code", {"pending": pending(with_password(served)), "code": code})
    assert again.status_code == 401
    # A login without a second factor is not asked.
    assert with_password(served, ADA).status_code == 303


def test_a_code_is_valid_for_one_step_and_one_use(served: Served) -> None:
    now = datetime(2026, 11, 24, 12, 0, 10, tzinfo=UTC)
    factor = served.accounts.second_factor
    secret = factor.turn_on(OPERATOR).secret
    for apart in (-61, 51, -3_600):
        assert not factor.accepts(OPERATOR, code_of(secret, now + timedelta(seconds=apart)), now)
    early = code_of(secret, now - timedelta(seconds=30))
    late = code_of(secret, now + timedelta(seconds=30))
    for code in ("", "1", "１２３４５６", "\N{SNOWMAN}23456", early + "0", "-12345"):
        assert not factor.accepts(OPERATOR, code, now)
    assert factor.accepts(OPERATOR, early, now)
    assert not factor.accepts(OPERATOR, early, now)
    assert factor.accepts(OPERATOR, late, now)
    # A code older than the last used one may have been seen.
    assert not factor.accepts(OPERATOR, code_of(secret, now), now)
    assert not factor.accepts(ADA, late, now)
    assert not factor.accepts("missing@finora.example", late, now)


def test_the_secret_is_sealed_and_stays_with_the_login(served: Served) -> None:
    factor = served.accounts.second_factor
    login = served.sign_in.get(OPERATOR)
    assert login
    token = served.sign_in.open_session(login, datetime.now(UTC))
    made = factor.turn_on(OPERATOR)
    # Sessions opened without a code end.
    assert served.sign_in.of_session(token, datetime.now(UTC)) is None
    asked = parse_qs(urlsplit(made.address).query)
    assert made.address.startswith("otpauth://totp/Finora:")
    assert (asked["secret"], asked["digits"], asked["period"]) == ([made.secret], ["6"], ["30"])
    database = Path(served.settings.accounts_url.removeprefix("sqlite:///"))
    stored = b"".join(file.read_bytes() for file in database.parent.glob(f"{database.name}*"))
    assert made.secret.encode() not in stored
    assert base64.b32decode(made.secret) not in stored
    # A new password keeps the second factor; a login without a password has none.
    replaced = served.sign_in.save(OPERATOR, user_id=None, password=PASSWORD)
    assert replaced.has_second_factor
    now = datetime.now(UTC)
    assert factor.accepts(OPERATOR, code_of(made.secret, now), now)
    assert not served.sign_in.save(OPERATOR, user_id=None, password=None).has_second_factor
    with pytest.raises(AccountsError, match="set up the second factor there"):
        factor.turn_on(OPERATOR)
    with pytest.raises(AccountsError, match="No login is named"):
        factor.turn_on("missing@finora.example")


def test_guessing_codes_is_slowed_down(served: Served) -> None:
    secret = served.accounts.second_factor.turn_on(OPERATOR).secret
    for _ in range(FREE_FAILURES // MOST_TRIES):
        token = pending(with_password(served))
        form = {"pending": token, "code": "x"}
        answers = [served.post("/sign-in/code", form) for _ in range(MOST_TRIES)]
        assert [answer.status_code for answer in answers] == [401] * MOST_TRIES
        # After some wrong codes the password is required again.
        assert "Enter name and password again" in answers[-1].text
    right = {"pending": pending(with_password(served)), "code": code_of(secret, datetime.now(UTC))}
    assert served.post("/sign-in/code", right).status_code == 429
    refused = [entry for entry in trail(served, OPERATORS) if entry[0] == "sign-in refused"]
    assert refused == [
        ("sign-in refused", f"{OPERATOR}: {FREE_FAILURES} wrong codes", "127.0.0.1"),
    ]


@pytest.mark.slow
def test_guessing_codes_from_many_addresses_is_slowed_down(tmp_path: Path) -> None:
    environment = {"FINORA_HOME": str(tmp_path), "FINORA_TRUSTED_PROXIES": "127.0.0.1"}
    settings = Settings.from_environment(environment)
    accounts_of(settings).logins.save(OPERATOR, user_id=None, password=PASSWORD)
    with dashboard(settings, PUBLIC_URL, by_link=False) as served:
        secret = served.accounts.second_factor.turn_on(OPERATOR).secret
        form = {"name": OPERATOR, "password": PASSWORD}

        def answer_to(code: str, address: str) -> httpx.Response:
            claim = {"X-Forwarded-For": address}
            token = pending(served.post("/sign-in", form, headers=claim))
            return served.post("/sign-in/code", {"pending": token, "code": code}, headers=claim)

        for number in range(FREE_FAILURES):
            assert answer_to("x", f"203.0.113.{number}").status_code == 401
        # A stranger with the password gets no further guesses from another address.
        right = code_of(secret, datetime.now(UTC))
        assert answer_to(right, "198.51.100.1").status_code == 429


def test_a_half_finished_sign_in_expires(served: Served) -> None:
    clock = [0.0]
    unfinished = PendingSignIns(now=lambda: clock[0])
    login = Login(OPERATOR, None, True, datetime.now(UTC), True)
    token = unfinished.begin(PendingSignIn(login, "/", Attempt(OPERATOR, "127.0.0.1"), 0))
    clock[0] = SECONDS
    assert unfinished.get(token)
    clock[0] += 1
    assert unfinished.get(token) is None
    assert not unfinished.has_tries_left(token)
    assert unfinished.get("") is None
    # So does the sign-in of a login replaced since.
    secret = served.accounts.second_factor.turn_on(OPERATOR).secret
    waiting = pending(with_password(served))
    served.sign_in.save(OPERATOR, user_id=None, password="another long password")
    late = {"pending": waiting, "code": code_of(secret, datetime.now(UTC))}
    answer = served.post("/sign-in/code", late)
    assert answer.status_code == 401
    assert "Enter name and password again" in answer.text


def test_sign_ins_are_in_the_audit_trail(served: Served) -> None:
    for _ in range(3):
        served.post("/sign-in", {"name": ADA, "password": "a secret of another site"})
        served.post("/sign-in", {"name": "stranger@x.example", "password": "a secret of another site"})
    assert with_password(served, ADA).status_code == 303
    served.browser.cookies.clear()
    for number in range(FREE_FAILURES):
        served.post("/sign-in", {"name": ADA, "password": f"wrong {number}"})
    assert trail(served, "acme") == [
        ("sign-in", "by password after 3 failures", ADA),
        ("sign-in refused", f"{ADA}: {FREE_FAILURES} wrong passwords", "127.0.0.1"),
    ]
    secret = served.accounts.second_factor.turn_on(OPERATOR).secret
    token = pending(with_password(served))
    code = code_of(secret, datetime.now(UTC))
    assert served.post("/sign-in/code", {"pending": token, "code": code}).status_code == 303
    served.get("/", params={"token": ACCESS_TOKEN})
    served.get("/", params={"token": "wrong"})
    assert trail(served, OPERATORS) == [
        ("sign-in", "by password and code", OPERATOR),
        ("sign-in", "by start link", "start link"),
    ]


def test_the_keys_page_shows_who_did_what(served: Served) -> None:
    operator, ada = served.signed_in(OPERATOR), served.signed_in(ADA)
    assert served.post("/users/acme/plan", {"plan": "scale"}, headers=operator).status_code == 303
    served.post("/users/acme/plan", {"plan": "growth"}, headers=served.by_link())
    served.accounts.users.add("bolt", "growth")
    served.accounts.users.set_plan("bolt", "scale")
    page = served.page("/users/acme/settings/keys", headers=ada)
    rows = page.one("table", class_="events").one("tbody").all("tr")
    assert [(row.one("th").text, row.all("td")[1].text) for row in rows] == [
        ("Plan changed growth", "start link"),
        ("Plan changed scale", OPERATOR),
    ]
    for number in range(25):
        served.accounts.audit.note("acme", "plan", f"<b>{number}</b>")
    page = served.page("/users/acme/settings/keys", headers=ada)
    rows = page.one("table", class_="events").one("tbody").all("tr")
    assert len(rows) == 20
    assert "<b>24</b>" in rows[0].text


def test_passwords_can_be_switched_off_for_single_sign_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"FINORA_HOME": str(tmp_path), "FINORA_PASSWORD_SIGN_IN": "off"}
    settings = Settings.from_environment(environment)
    with dashboard(settings, by_link=False) as served:
        served.sign_in.save(OPERATOR, user_id=None, password=PASSWORD)
        assert with_password(served).status_code == 403
        assert served.page("/sign-in").all("input", name="password") == []
    with pytest.raises(DashboardRefused, match="FINORA_PASSWORD_SIGN_IN=off needs single sign-on"):
        prepared(settings, "127.0.0.1", 8000, None)
    monkeypatch.setenv("FINORA_OIDC_ISSUER", "https://login.example.com")
    monkeypatch.setenv("FINORA_OIDC_CLIENT_ID", "finora")
    assert prepared(settings, "0.0.0.0", 8000, PUBLIC_URL)
    with pytest.raises(SettingsError, match="FINORA_PASSWORD_SIGN_IN must be on or off"):
        Settings.from_environment({"FINORA_PASSWORD_SIGN_IN": "no"})


def test_the_terminal_sets_up_and_removes_a_second_factor() -> None:
    terminal = CliRunner()

    def finora(*words: str, said: str = "") -> tuple[int, str]:
        result = terminal.invoke(main, list(words), input=said)
        return result.exit_code, result.output

    assert finora("login", "add", OPERATOR, "--operator", said=f"{PASSWORD}\n")[0] == 0
    code, printed = finora("login", "totp", OPERATOR.upper())
    assert code == 0
    assert re.search(r"^Secret: [A-Z2-7]{32}$", printed, re.MULTILINE)
    assert re.search(r"^Address: otpauth://totp/Finora:.*secret=", printed, re.MULTILINE)
    assert "password and code" in finora("login", "list")[1]
    # Its secret is moved to a new master key.
    (secret,) = re.findall("Secret: ([A-Z2-7]+)", printed)
    assert finora("rotate-master-key")[0] == 0
    now = datetime.now(UTC)
    factor = accounts_of(Settings.from_environment()).second_factor
    assert factor.accepts(OPERATOR, code_of(secret, now), now)
    assert '"second_factor": true' in finora("login", "list", "--json")[1]
    assert finora("login", "totp", OPERATOR, "--off") == (0, f"{OPERATOR} signs in without a code.\n")
    assert '"second_factor": false' in finora("login", "list", "--json")[1]
    assert finora("login", "totp", OPERATOR, "--off")[0] == 1
    assert finora("login", "totp", "missing@finora.example")[0] == 1
