"""Who may come in, for how long, and what they may see."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import select, update
from starlette.routing import Route

from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.accounts.schema import sessions
from finora_pipeline.accounts.sign_in import SESSION_IDLE, SESSION_LONGEST, SignIn
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import main
from finora_pipeline.dashboard.app import MOST_FAILURES, ExposedWithoutSignIn, exposure
from finora_pipeline.dashboard.security import Attempts
from finora_pipeline.dashboard.server import DashboardRefused, prepared
from finora_pipeline.settings import Settings
from tests.conftest import Installation
from tests.dashboard.conftest import PASSWORD
from tests.dashboard.house import OWN, PUBLIC_URL, Served, dashboard, read_html

ADA, BOB, OPERATOR = "ada@acme.example", "bob@bolt.example", "ops@finora.example"


def sign_in(served: Served, name: str, password: str, after: str = "/") -> httpx.Response:
    return served.post("/sign-in", {"name": name, "password": password, "next": after})


def cookie_of(answer: httpx.Response) -> str:
    """The session as the browser sends it back."""
    return answer.headers["set-cookie"].partition(";")[0]


def pages(served: Served, user_id: str) -> Iterator[tuple[str, str]]:
    """Method and path of every endpoint, with a user's id where one belongs."""
    for route in served.app.routes:
        if isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path.replace("{user_id}", user_id)


def test_on_this_machine_nobody_signs_in_until_a_login_exists(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings) as served:
        assert served.get("/").headers["location"] == "/users/my-company/overview"
        assert served.get("/users/my-company/settings/keys").status_code == 200
        assert served.get("/sign-in").headers["location"] == "/"
        served.sign_in.save("first@acme.example", user_id="acme", password=None)
        assert served.get("/").headers["location"] == "/sign-in?next=%2F"
        assert served.get("/users/my-company/settings/keys").status_code == 303
        assert served.get("/sign-in").status_code == 200


def test_every_page_needs_a_sign_in(closed: Served) -> None:
    open_to_all = {"/health", "/sign-in", "/sign-in/oidc", "/sign-in/oidc/callback", "/sign-out"}
    checked = 0
    for method, path in pages(closed, "acme"):
        if path in open_to_all:
            continue
        answer = closed.browser.request(method, path, headers=OWN)
        if method == "GET":
            assert answer.status_code == 303
            assert answer.headers["location"] == "/sign-in?" + urlencode({"next": path})
        else:
            assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        checked += 1
    assert checked >= 12
    for forged in ("finora=", "finora=x", "finora=" + "A" * 43, "__Host-finora=x", "finora-oidc=x"):
        assert closed.get("/users/acme/overview", headers={"Cookie": forged}).status_code == 303


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (ADA, "another password"),
        (ADA, ""),
        (ADA, PASSWORD.upper()),
        (ADA, "x" * 1_001),
        ("nobody@acme.example", PASSWORD),
        ("", ""),
        ("\0", PASSWORD),
    ],
)
def test_a_wrong_password_lets_nobody_in(name: str, password: str, closed: Served) -> None:
    answer = sign_in(closed, name, password)
    assert answer.status_code == 401
    assert read_html(answer.text).one("div", class_="error").text == "Name or password is wrong."
    assert "set-cookie" not in answer.headers


def test_a_password_lets_in_and_the_page_that_was_asked_for_follows(closed: Served) -> None:
    answer = sign_in(closed, f" {ADA.upper()} ", PASSWORD, "/users/acme/plan?saved=yes")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/users/acme/plan?saved=yes"
    attributes = answer.headers["set-cookie"].lower().split("; ")
    assert {"httponly", "samesite=lax", "path=/", f"max-age={7 * 86_400}"} <= set(attributes)
    assert not any(attribute.startswith("domain") for attribute in attributes)
    session = {"Cookie": cookie_of(answer)}
    assert closed.get("/", headers=session).headers["location"] == "/users/acme/overview"
    page = closed.page("/users/acme/overview", headers=session)
    assert page.one("details", class_="menu").one("summary").text == ADA
    assert closed.post("/sign-out", headers=session).headers["location"] == "/sign-in"
    assert closed.get("/users/acme/overview", headers=session).status_code == 303


def test_beyond_this_machine_the_cookie_is_the_hosts_and_encrypted_ones_alone(public: Served) -> None:
    answer = sign_in(public, ADA, PASSWORD)
    name, _, rest = answer.headers["set-cookie"].partition("=")
    assert name == "__Host-finora"
    assert {"secure", "httponly", "samesite=lax", "path=/"} <= set(rest.lower().split("; "))
    assert public.get("/users/acme/overview", headers={"Cookie": cookie_of(answer)}).status_code == 200
    plain = {"Cookie": cookie_of(answer).replace("__Host-finora", "finora")}
    assert public.get("/users/acme/overview", headers=plain).status_code == 303
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    gone = public.post("/sign-out", headers={"Cookie": cookie_of(answer)})
    assert gone.headers["set-cookie"].lower().count("secure") == 1


def test_sign_out_everywhere_ends_every_session_of_that_login_alone(closed: Served) -> None:
    mine, other, bobs = (closed.signed_in(name) for name in (ADA, ADA, BOB))
    closed.post("/sign-out", {"everywhere": "yes"}, headers=mine)
    assert closed.get("/", headers=mine).headers["location"].startswith("/sign-in")
    assert closed.get("/", headers=other).headers["location"].startswith("/sign-in")
    assert closed.get("/", headers=bobs).headers["location"] == "/users/bolt/overview"


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings) as served:
        served.sign_in.save(ADA, user_id="acme", password=PASSWORD)
        served.sign_in.save(BOB, user_id="bolt", password=PASSWORD)

        def guess(number: int) -> int:
            return sign_in(served, ADA, f"guess number {number}").status_code

        # Guesses that are sent at once are counted like any others.
        with ThreadPoolExecutor(MOST_FAILURES + 3) as threads:
            answers = sorted(threads.map(guess, range(MOST_FAILURES + 3)))
        assert answers == [401] * MOST_FAILURES + [429] * 3
        blocked = sign_in(served, ADA.upper(), PASSWORD)
        assert blocked.status_code == 429
        assert "Too many wrong passwords" in blocked.text
        assert "set-cookie" not in blocked.headers
        assert sign_in(served, BOB, PASSWORD).status_code == 303


def test_failures_are_forgotten_after_a_while_and_by_a_success() -> None:
    clock = [0.0]
    attempts = Attempts(2, 60, now=lambda: clock[0], remembered=3)
    attempts.failed("ada")
    clock[0] = 50
    attempts.failed("ada", "bob")
    assert attempts.is_blocked("ada")
    assert not attempts.is_blocked("bob")
    assert attempts.is_blocked("bob", "ada")
    clock[0] = 61
    assert not attempts.is_blocked("ada")
    attempts.failed("ada")
    assert attempts.is_blocked("ada")
    attempts.forget("ada")
    assert not attempts.is_blocked("ada")


def test_no_flood_of_names_fills_the_memory() -> None:
    attempts = Attempts(2, 60, now=lambda: 0.0, remembered=3)
    for number in range(20):
        attempts.is_blocked(f"asked {number}")
    assert len(attempts._failures) <= 3


def test_sessions_end_when_idle_when_old_and_with_their_login(
    tmp_path: Path,
) -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    people = SignIn(accounts_of(settings).database)
    ada = people.save(ADA, user_id="acme", password=PASSWORD)
    token = people.open_session(ada, now)
    assert people.of_session(token, now + SESSION_IDLE) == ada
    # Seen then, it is good for as long again.
    assert people.of_session(token, now + SESSION_IDLE * 2) == ada
    assert people.of_session(token, now + SESSION_IDLE * 3 + timedelta(seconds=1)) is None
    kept = people.open_session(ada, now)
    moment = now
    while moment < now + SESSION_LONGEST:
        assert people.of_session(kept, moment) == ada
        moment += SESSION_IDLE
    assert people.of_session(kept, now + SESSION_LONGEST) == ada
    assert people.of_session(kept, now + SESSION_LONGEST + timedelta(seconds=1)) is None
    assert people.of_session("", now) is None

    replaced = people.open_session(ada, now)
    people.save(ADA, user_id="bolt", password=PASSWORD)
    assert people.of_session(replaced, now) is None
    removed = people.open_session(ada, now)
    people.remove(ADA)
    assert people.of_session(removed, now) is None
    with pytest.raises(AccountsError, match="There is no login"):
        people.remove(ADA)


def test_who_is_signed_in_does_not_wait_for_whoever_writes_the_accounts(closed: Served) -> None:
    ada = closed.signed_in(ADA)
    long_ago = update(sessions).values(seen_at=datetime.now(UTC) - timedelta(hours=1))
    with closed.accounts.database.begin() as database:
        database.execute(long_ago)
    with closed.accounts.database.begin():
        assert closed.get("/users/acme/overview", headers=ada, timeout=5).status_code == 200
    # Whoever comes next is seen, and waits for others as before.
    assert closed.get("/users/acme/plan", headers=ada).status_code == 200
    with closed.accounts.database.connect() as database:
        seen = database.scalars(select(sessions.c.seen_at)).all()
    assert max(seen) > datetime.now(UTC) - timedelta(minutes=5)
    raw = closed.accounts.database.raw_connection()
    assert raw.cursor().execute("PRAGMA busy_timeout").fetchone() == (30_000,)
    raw.close()


def test_what_is_stored_signs_nobody_in(closed: Served) -> None:
    session = closed.signed_in(ADA)["Cookie"].partition("=")[2]
    path = Path(closed.settings.accounts_url.removeprefix("sqlite:///"))
    written = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    assert session.encode() not in written
    assert PASSWORD.encode() not in written
    with closing(sqlite3.connect(path)) as database:
        hashes = [value for (value,) in database.execute("SELECT token_hash FROM sessions")]
        passwords = [value for (value,) in database.execute("SELECT password_hash FROM logins")]
    assert hashes
    for stored in hashes:
        assert (
            closed.get("/", headers={"Cookie": f"finora={stored}"}).headers["location"].startswith("/sign-in")
        )
    assert all(value.startswith("$argon2id$") for value in passwords)


ELSEWHERE = [
    "https://evil.example/",
    "//evil.example/",
    "///evil.example/",
    "/\\evil.example/",
    "\\\\evil.example",
    "/\t/evil.example",
    " //evil.example",
    "javascript:alert(1)",
    "//[",
    "http://[",
    "/\r\nSet-Cookie: finora=x",
    "evil.example",
    "",
]


def test_no_next_leads_to_another_site(closed: Served) -> None:
    for after in ELSEWHERE:
        shown = closed.get("/sign-in", params={"next": after})
        assert shown.status_code == 200
        assert read_html(shown.text).one("input", name="next").attributes["value"] == "/"
    answers = [sign_in(closed, ADA, PASSWORD, after) for after in ("//evil.example/", "//[", "/\r\nA: b")]
    assert [answer.headers["location"] for answer in answers] == ["/", "/", "/"]
    kept = "/users/acme/overview?period=7d&model=a%2F%2Fb"
    shown = closed.get("/sign-in", params={"next": kept})
    assert read_html(shown.text).one("input", name="next").attributes["value"] == kept


# What is another's.


def test_what_is_anothers_is_not_there(closed: Served, installation: Installation) -> None:
    ada = closed.signed_in(ADA)
    bolt = installation.openai.organizations[1]
    connection = closed.accounts.connection("bolt")
    assert connection is not None
    secrets = [bolt.id, bolt.name, connection.key_hint, bolt.projects[0].id]
    seen = 0
    for method, path in pages(closed, "bolt"):
        if "bolt" not in path:
            continue
        form = {"plan": "trial", "provider": "openai", "key": bolt.admin_key}
        queries = ("", "?period=90d&model=gpt-4o-mini-2024-07-18", "?period=nonsense")
        for query in queries if method == "GET" else ("",):
            data = form if method == "POST" else None
            answer = closed.browser.request(method, path + query, headers=OWN | ada, data=data)
            assert answer.status_code == 404
            assert not [secret for secret in secrets if secret in answer.text]
            seen += 1
    assert seen >= 20
    assert closed.accounts.connection("bolt") == connection
    for name in (
        "BOLT",
        "bolt%20",
        "bolt%00",
        "%62olt",
        "acme/../bolt",
        "acme%2F..%2Fbolt",
        "BOLT.",
        "a" * 200,
    ):
        answer = closed.get(f"/users/{name}/overview", headers=ada)
        assert answer.status_code == 404
    assert closed.get("/users", headers=ada).status_code == 404
    assert closed.post("/users", {"user_id": "mine"}, headers=ada).status_code == 404
    assert "mine" not in closed.accounts.user_ids()


def test_nothing_of_anothers_is_on_ones_own_pages(closed: Served, installation: Installation) -> None:
    ada = closed.signed_in(ADA)
    acme, bolt = installation.openai.organizations[:2]
    own = ""
    for method, path in pages(closed, "acme"):
        if method == "GET" and "acme" in path:
            answer = closed.get(path + "?period=90d&model=gpt-4o-mini-2024-07-18", headers=ada)
            assert answer.status_code in (200, 303)
            own += answer.text
    for thing in (bolt.id, bolt.name, bolt.projects[0].id, "bolt"):
        assert thing not in own
    assert acme.name in own
    foreign = closed.page(f"/users/acme/overview?period=90d&project={bolt.projects[0].id}", headers=ada)
    assert foreign.all("p", class_="value")[0].title == "0"


def test_a_user_does_not_change_the_plan_and_an_operator_sees_and_does_all(closed: Served) -> None:
    ada, operator = closed.signed_in(ADA), closed.signed_in(OPERATOR)
    refused = closed.post("/users/acme/plan", {"plan": "enterprise"}, headers=ada)
    assert refused.status_code == 403
    assert "An operator changes plans." in refused.text
    assert closed.accounts.plans()["acme"].name == "growth"
    assert "Change the plan" not in closed.get("/users/acme/plan", headers=ada).text

    for user_id in ("acme", "bolt", "tiny", "gone"):
        for method, path in pages(closed, user_id):
            if method == "GET" and user_id in path:
                answer = closed.get(path + "?model=gpt-4o-mini-2024-07-18", headers=operator)
                expected = {403, 200} if path.endswith(".csv") else {303, 200}
                assert answer.status_code in expected
    assert closed.get("/", headers=operator).headers["location"] == "/users"
    for user_id in ("acme", "bolt", "tiny", "gone"):
        found = closed.page(f"/users?q={user_id.upper()}", headers=operator).one("tbody").all("tr")
        assert user_id in [row.one("a").text for row in found]

    changed = closed.post("/users/tiny/plan", {"plan": "growth"}, headers=operator)
    assert changed.headers["location"] == "/users/tiny/plan?saved=yes"
    assert closed.accounts.plans()["tiny"].name == "growth"
    unknown = closed.post("/users/tiny/plan", {"plan": "gold"}, headers=operator)
    assert unknown.status_code == 422
    assert "There is no plan “gold”" in unknown.text
    made = closed.post("/users", {"user_id": " new.user "}, headers=operator)
    assert made.headers["location"] == "/users/new.user/settings/keys"
    refused = closed.post("/users", {"user_id": "../etc"}, headers=operator)
    assert refused.status_code == 422
    assert "cannot be a user id" in refused.text


def test_many_users_come_page_by_page(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings) as served:
        for number in range(53):
            served.accounts.add_user(f"user-{number:02}")
        for query, first, last, number in (
            ("", "user-00", "user-49", 50),
            ("?from=50", "user-50", "user-52", 3),
        ):
            page = served.page(f"/users{query}")
            names = [row.one("a").text for row in page.one("tbody").all("tr")]
            assert (names[0], names[-1], len(names)) == (first, last, number)
        for odd in ("-1", "x", "99999999999999999999", "１", "60"):
            assert served.get("/users", params={"from": odd}).status_code == 200


# Where the server may answer.


@pytest.mark.parametrize(
    ("host", "public_url", "has_sign_in", "told"),
    [
        ("0.0.0.0", None, True, "need --public-url"),
        ("0.0.0.0", "http://finora.example.com", True, "need --public-url"),
        ("0.0.0.0", "https://", True, "need --public-url"),
        ("0.0.0.0", "https://finora.example.com/pages", True, "need --public-url"),
        ("0.0.0.0", PUBLIC_URL, False, "people must sign in"),
        ("127.0.0.1", PUBLIC_URL, False, "people must sign in"),
        ("192.168.1.5", None, False, "need --public-url"),
    ],
)
def test_beyond_this_machine_it_is_encrypted_and_signed_in(
    host: str, public_url: str | None, has_sign_in: bool, told: str
) -> None:
    with pytest.raises(ExposedWithoutSignIn, match=told):
        exposure(host, 8000, public_url, has_sign_in)


def test_where_it_answers() -> None:
    here = exposure("127.0.0.1", 8000, None, False)
    assert (here.is_public, here.requires_sign_in) == (False, False)
    assert "http://localhost:8000" in here.origins
    assert exposure("localhost", 8000, None, True).requires_sign_in
    there = exposure("0.0.0.0", 8000, PUBLIC_URL + "/", True)
    assert (there.origins, there.is_public, there.requires_sign_in) == (frozenset([PUBLIC_URL]), True, True)
    # As browsers write the same address.
    assert exposure("0.0.0.0", 8000, "https://Finora.Example.com:443", True).origins == {PUBLIC_URL}
    assert "http://localhost" in exposure("127.0.0.1", 80, None, False).origins


def test_what_is_served_is_looked_at_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    for name in ("FINORA_OIDC_ISSUER", "FINORA_OIDC_CLIENT_ID", "FINORA_OIDC_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    assert prepared(settings, "127.0.0.1", 8000, None)
    with pytest.raises(DashboardRefused, match="people must sign in"):
        prepared(settings, "0.0.0.0", 8000, PUBLIC_URL)
    monkeypatch.setenv("FINORA_OIDC_ISSUER", "https://login.example.com")
    with pytest.raises(DashboardRefused, match="Set both"):
        prepared(settings, "127.0.0.1", 8000, None)
    monkeypatch.setenv("FINORA_OIDC_CLIENT_ID", "finora")
    assert prepared(settings, "0.0.0.0", 8000, PUBLIC_URL)


# At the terminal.


def test_logins_are_made_and_ended_at_the_terminal() -> None:
    terminal = CliRunner()

    def finora(*words: str, said: str = "") -> tuple[int, str]:
        result = terminal.invoke(main, list(words), input=said)
        return result.exit_code, result.output

    assert finora("login", "add", ADA, "--user", "acme", said=f"{PASSWORD}\n") == (
        0, f"{ADA} may sign in and sees acme.\n")  # fmt: skip
    assert finora("login", "add", OPERATOR, "--operator", "--no-password")[0] == 0
    for wrong in (["login", "add", "x"], ["login", "add", "x", "--user", "a", "--operator"]):
        code, told = finora(*wrong, said=PASSWORD)
        assert (code, "Say --user U or --operator." in told) == (2, True)
    code, told = finora("login", "add", "x", "--operator", said="short\n")
    assert (code, "Take a password of 12 to 1000 characters." in told) == (1, True)
    assert finora("login", "add", " ", "--operator", said=f"{PASSWORD}\n")[0] == 1
    assert finora("login", "add", "x", "--user", "../x", said=f"{PASSWORD}\n")[0] == 1

    people = SignIn(accounts_of(Settings.from_environment()).database)
    assert [(one.name, one.user_id, one.has_password) for one in people.logins()] == [
        (ADA, "acme", True),
        (OPERATOR, None, False),
    ]
    assert people.by_password(ADA, PASSWORD) == people.login(ADA)
    assert people.by_password(OPERATOR, PASSWORD) is None
    code, told = finora("login", "list")
    assert code == 0
    assert "identity provider" in told
    assert PASSWORD not in finora("login", "list", "--json")[1]
    now = datetime.now(UTC)
    login = people.login(ADA)
    assert login is not None
    token = people.open_session(login, now)
    assert finora("login", "sign-out", ADA) == (0, f"Ended 1 sessions of {ADA}.\n")
    assert finora("login", "sign-out", "nobody@example.com") == (
        1,
        "Error: There is no login nobody@example.com.\n",
    )
    assert people.of_session(token, now) is None
    assert finora("login", "remove", ADA)[0] == 0
    assert people.login(ADA) is None
    code, told = finora("login", "remove", ADA)
    assert (code, f"There is no login {ADA}." in told) == (1, True)
    assert finora("dashboard", "--host", "0.0.0.0")[0] == 1
