"""Sign-in: access, duration of sessions, and visible pages."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import select, update
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route

from finora_pipeline.accounts.database import sessions
from finora_pipeline.accounts.logins import DEVICE_KNOWN, SESSION_IDLE, SESSION_LONGEST
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import main
from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.dashboard.security.exposure import ExposedWithoutSignIn, exposure
from finora_pipeline.dashboard.security.throttle import (
    FAILURES_OF_ADDRESS,
    FAILURES_OVERALL,
    FREE_FAILURES,
    Attempt,
    LoginThrottle,
    client_address,
)
from finora_pipeline.dashboard.server import DashboardRefused, prepared
from finora_pipeline.settings import Settings, SettingsError
from tests.conftest import Installation
from tests.dashboard.conftest import PASSWORD
from tests.dashboard.served import ACCESS_TOKEN, OWN, PUBLIC_URL, Served, dashboard, read_html

ADA, BOB, OPERATOR = "ada@acme.example", "bob@bolt.example", "ops@finora.example"


def sign_in(served: Served, name: str, password: str, after: str = "/") -> httpx.Response:
    return served.post("/sign-in", {"name": name, "password": password, "next": after})


def cookie_of(answer: httpx.Response) -> str:
    """Return the session cookie as the browser sends it."""
    return answer.headers["set-cookie"].partition(";")[0]


def pages(served: Served, user_id: str) -> Iterator[tuple[str, str]]:
    """Return method and path of every endpoint, with a user id in its place."""
    for route in served.app.routes:
        if isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path.replace("{user_id}", user_id)


def test_the_start_link_opens_the_pages_on_this_machine(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings, by_link=False) as served:
        opened = served.by_link()
        assert served.get("/", headers=opened).headers["location"] == "/users/my-company/overview"
        assert served.get("/sign-in", headers=opened).headers["location"] == "/"
        for _ in range(2):
            # Another account of this machine, or a stranger behind a proxy, has no link.
            assert served.get("/").headers["location"] == "/sign-in?next=%2F"
            assert served.get("/users/my-company/settings/keys").status_code == 303
            assert served.post("/users", {"user_id": "mine"}).status_code == 401
            assert "finora up" in served.page("/sign-in").one("p", class_="note").text
            assert served.get("/users", headers=opened).status_code == 200
            # A login changes nothing here.
            served.sign_in.save("first@acme.example", user_id="acme", password=None)
        assert served.accounts.users.ids() == []


def test_the_token_does_not_stay_in_the_address(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings, by_link=False) as served:
        answer = served.get("/users/acme/overview?period=7d", params={"token": ACCESS_TOKEN, "period": "7d"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/users/acme/overview?period=7d")
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        name, _, rest = answer.headers["set-cookie"].partition("=")
        value, *attributes = rest.lower().split("; ")
        assert name == served.access.cookie
        assert {"httponly", "samesite=lax", "path=/", "max-age=604800"} == set(attributes)
        assert ACCESS_TOKEN not in value
        served.browser.cookies.clear()
        opened = {"Cookie": f"{name}={value}"}
        assert served.get("/users", headers=opened).status_code == 200
        # Neither the token itself nor an altered cookie opens anything.
        issued, _, signature = value.partition(".")
        for forged in (ACCESS_TOKEN, f"{int(issued) + 1}.{signature}", f".{signature}", issued, "", "ä.ä"):
            cookie = [(b"Cookie", f"{name}={forged}".encode())]
            assert served.browser.get("/users", headers=cookie).status_code == 303
        for wrong in ("", "x", ACCESS_TOKEN[:-1], ACCESS_TOKEN + "x", "\N{SNOWMAN}"):
            refused = served.get("/", params={"token": wrong})
            assert refused.status_code == 403
            assert "set-cookie" not in refused.headers
            assert "Open the link that finora printed" in refused.text
        # No path leads elsewhere.
        there = served.browser.get(f"{served.url}//evil.example/?token={ACCESS_TOKEN}")
        assert there.headers["location"] == "/evil.example/"


def test_scripts_send_the_token_as_a_bearer_token(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings, by_link=False) as served:
        bearer = {"Authorization": f"Bearer {ACCESS_TOKEN}"}
        assert served.get("/users", headers=bearer).status_code == 200
        made = served.browser.post("/users", data={"user_id": "mine"}, headers=bearer)
        assert made.headers["location"] == "/users/mine/settings/keys"
        for wrong in ("Bearer x", "Basic " + ACCESS_TOKEN, ACCESS_TOKEN, "Bearer"):
            other = {"Authorization": wrong}
            assert served.get("/users", headers=other).status_code == 303
            assert served.browser.post("/users", data={"user_id": "x"}, headers=other).status_code == 403
        # A foreign page could not send it, and is refused in any case.
        foreign = bearer | {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}
        assert served.browser.post("/users", data={"user_id": "x"}, headers=foreign).status_code == 403
        assert served.accounts.users.ids() == ["mine"]


def test_the_start_links_cookie_ends_after_a_week_and_at_sign_out(tmp_path: Path) -> None:
    now = [1_000_000.0]
    access = Access(ACCESS_TOKEN, now=lambda: now[0])
    response = Response()
    access.grant(response)
    cookie = response.headers["set-cookie"].partition(";")[0].encode()
    asked = HTTPConnection({"type": "http", "headers": [(b"cookie", cookie)]})
    assert access.is_operator(asked)
    now[0] += 7 * 86_400
    assert access.is_operator(asked)
    now[0] += 1
    assert not access.is_operator(asked)
    # Two servers, two tokens, two cookies in one browser.
    other = Access("another-token-of-the-tests", now=lambda: now[0])
    assert other.cookie != access.cookie
    with dashboard(Settings.from_environment({"FINORA_HOME": str(tmp_path)})) as served:
        assert served.page("/users").one("details", class_="menu").one("summary").text == "start link"
        gone = served.post("/sign-out")
        assert f'{served.access.cookie}=""' in gone.headers.get_list("set-cookie")[1]


def test_an_access_token_easy_to_guess_is_refused() -> None:
    for weak in ("", "1234567", "with a space in it", "snowman-\N{SNOWMAN}-snowman"):
        with pytest.raises(SettingsError, match="FINORA_ACCESS_TOKEN must have at least 8 ASCII characters"):
            Access(weak)
    assert Access.from_environment({"FINORA_ACCESS_TOKEN": ACCESS_TOKEN}).is_token(ACCESS_TOKEN)
    fresh = Access.from_environment({})
    link = fresh.link("http://127.0.0.1:8000")
    assert fresh.is_token(link.partition("?token=")[2])
    assert Access.from_environment({}).link("") != fresh.link("")
    # Output may end in a log, so a permanent token is not printed.
    lasting = Access.from_environment({"FINORA_ACCESS_TOKEN": ACCESS_TOKEN})
    assert lasting.link("http://127.0.0.1:8000") == "http://127.0.0.1:8000/?token=…"


def test_the_token_opens_nothing_at_a_public_address(public: Served) -> None:
    answer = public.browser.get("/users", params={"token": ACCESS_TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/users")
    assert "set-cookie" not in answer.headers
    response = Response()
    public.access.grant(response)
    cookie = response.headers["set-cookie"].partition(";")[0]
    for headers in ({"Authorization": f"Bearer {ACCESS_TOKEN}"}, {"Cookie": cookie}):
        assert public.get("/users", headers=headers).status_code == 303


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
        ("missing@acme.example", PASSWORD),
        ("", ""),
        ("\0", PASSWORD),
    ],
)
def test_a_wrong_password_is_refused(name: str, password: str, closed: Served) -> None:
    answer = sign_in(closed, name, password)
    assert answer.status_code == 401
    assert read_html(answer.text).one("div", class_="error").text == "Wrong name or password."
    assert "set-cookie" not in answer.headers


def test_a_password_signs_in_and_leads_to_the_requested_page(closed: Served) -> None:
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


def test_public_cookies_are_secure_and_bound_to_the_host(public: Served) -> None:
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


def test_sign_out_everywhere_ends_that_logins_sessions_alone(closed: Served) -> None:
    mine, other, bobs = (closed.signed_in(name) for name in (ADA, ADA, BOB))
    closed.post("/sign-out", {"everywhere": "yes"}, headers=mine)
    assert closed.get("/", headers=mine).headers["location"].startswith("/sign-in")
    assert closed.get("/", headers=other).headers["location"].startswith("/sign-in")
    assert closed.get("/", headers=bobs).headers["location"] == "/users/bolt/overview"


@pytest.mark.slow
def test_password_guessing_is_slowed_down(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings, by_link=False) as served:
        served.sign_in.save(ADA, user_id="acme", password=PASSWORD)
        served.sign_in.save(BOB, user_id="bolt", password=PASSWORD)

        def guess(number: int) -> int:
            return sign_in(served, ADA, f"guess number {number}").status_code

        # Concurrent guesses are counted like others.
        with ThreadPoolExecutor(FREE_FAILURES + 3) as threads:
            answers = sorted(threads.map(guess, range(FREE_FAILURES + 3)))
        assert answers == [401] * FREE_FAILURES + [429] * 3
        blocked = sign_in(served, ADA.upper(), PASSWORD)
        assert blocked.status_code == 429
        assert "Too many wrong passwords" in blocked.text
        assert 0 < int(blocked.headers["retry-after"]) <= 30
        assert "set-cookie" not in blocked.headers
        assert sign_in(served, BOB, PASSWORD).status_code == 303
        # The name is closed to this address alone.
        with httpx.Client(
            base_url=served.url, transport=httpx.HTTPTransport(local_address="127.0.0.2")
        ) as elsewhere:
            form = {"name": ADA, "password": PASSWORD}
            assert elsewhere.post("/sign-in", data=form, headers=OWN).status_code == 303


@pytest.mark.slow
def test_strangers_do_not_lock_out_a_known_device(closed: Served, tmp_path: Path) -> None:
    """Behind an untrusted proxy all clients have the same address."""
    settings = replace(closed.settings, accounts_url=f"sqlite:///{tmp_path}/accounts.sqlite")
    accounts_of(settings).logins.save(ADA, user_id="acme", password=PASSWORD)
    with dashboard(settings, PUBLIC_URL, by_link=False) as served:
        first = sign_in(served, ADA, PASSWORD)
        mark = next(one for one in first.headers.get_list("set-cookie") if "-device=" in one)
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= set(mark.lower().split("; "))
        device = {"Cookie": mark.partition(";")[0]}
        served.browser.cookies.clear()
        codes = [sign_in(served, ADA, f"guess {number}").status_code for number in range(FREE_FAILURES + 2)]
        assert codes[-1] == 429
        form = {"name": ADA, "password": PASSWORD}
        assert served.post("/sign-in", form).status_code == 429
        assert served.post("/sign-in", form, headers=device).status_code == 303
        served.browser.cookies.clear()

        # A device is known for a single name, and its guesses are counted, too.
        wrong = form | {"password": "wrong password"}
        codes = [served.post("/sign-in", wrong, headers=device).status_code for _ in range(FREE_FAILURES + 1)]
        assert codes == [401] * FREE_FAILURES + [429]
        forged = {"Cookie": device["Cookie"][:-1] + ("0" if device["Cookie"][-1] != "0" else "1")}
        assert served.post("/sign-in", form, headers=forged).status_code == 429
        # A new password ends it.
        served.sign_in.save(ADA, user_id="acme", password=PASSWORD)
        assert served.sign_in.device_of(ADA, device["Cookie"].partition("=")[2], datetime.now(UTC)) is None


def test_a_device_is_known_for_half_a_year(tmp_path: Path) -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    people = accounts_of(Settings.from_environment({"FINORA_HOME": str(tmp_path)})).logins
    people.save(ADA, user_id="acme", password=PASSWORD)
    people.save(BOB, user_id="bolt", password=None)
    mark = people.mark_device(ADA.upper(), now)
    assert mark
    device = people.device_of(f" {ADA}", mark, now)
    assert device
    assert people.device_of(ADA, mark, now + DEVICE_KNOWN) == device
    assert people.device_of(ADA, mark, now + DEVICE_KNOWN + timedelta(seconds=1)) is None
    assert people.mark_device(BOB, now) is None
    assert people.mark_device("x", now) is None
    for name, wrong in ((BOB, mark), ("x", mark), (ADA, ""), (ADA, "a.b.c"), (ADA, "ä"), (ADA, mark[1:])):
        assert people.device_of(name, wrong, now) is None


@pytest.mark.slow
def test_trying_many_names_is_slowed_down(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    accounts_of(settings).logins.save(ADA, user_id="acme", password=PASSWORD)
    with dashboard(settings, PUBLIC_URL, by_link=False) as served:
        codes = [sign_in(served, f"name{n}@x.example", PASSWORD).status_code for n in range(60)]
    assert codes == [401] * FAILURES_OF_ADDRESS + [429] * (60 - FAILURES_OF_ADDRESS)


def test_a_trusted_proxy_names_the_client(tmp_path: Path) -> None:
    environment = {"FINORA_HOME": str(tmp_path), "FINORA_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8"}
    settings = Settings.from_environment(environment)
    accounts_of(settings).logins.save(ADA, user_id="acme", password=PASSWORD)
    with dashboard(settings, PUBLIC_URL, by_link=False) as served:
        form = {"name": ADA, "password": "wrong password"}
        # The client's own claim comes first in the header.
        claims = [{"X-Forwarded-For": f"192.0.2.{n}, 203.0.113.9"} for n in range(FREE_FAILURES + 1)]
        codes = [served.post("/sign-in", form, headers=claim).status_code for claim in claims]
        assert codes == [401] * FREE_FAILURES + [429]
        right = form | {"password": PASSWORD}
        assert served.post("/sign-in", right, headers={"X-Forwarded-For": "203.0.113.10"}).status_code == 303


def test_only_a_trusted_proxy_is_believed() -> None:
    trusted = Settings.from_environment({"FINORA_TRUSTED_PROXIES": "127.0.0.1,10.0.0.0/8"}).trusted_proxies
    for peer, forwarded, expected in (
        ("198.51.100.7", "203.0.113.9", "198.51.100.7"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "192.0.2.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("127.0.0.1", "10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "no address", "127.0.0.1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("", "203.0.113.9", ""),
    ):
        assert client_address(peer, forwarded, trusted) == expected
    with pytest.raises(SettingsError, match="FINORA_TRUSTED_PROXIES must be addresses or networks"):
        Settings.from_environment({"FINORA_TRUSTED_PROXIES": "nginx"})


def test_waits_double_and_failures_expire() -> None:
    clock = [0.0]
    throttle = LoginThrottle(now=lambda: clock[0])
    ada, bob = Attempt("ada", "203.0.113.9"), Attempt("bob", "203.0.113.9")
    for _ in range(FREE_FAILURES):
        assert throttle.wait(ada) == 0
        throttle.begin(ada)
    waits = []
    for _ in range(7):
        waits.append(throttle.wait(ada))
        clock[0] += waits[-1]
        throttle.begin(ada)
    assert waits == [30, 60, 120, 240, 480, 900, 900]
    assert throttle.wait(bob) == 0
    assert throttle.wait(Attempt("ada", "203.0.113.10")) == 0
    throttle.succeed(ada)
    assert throttle.wait(ada) == 0

    shared = Attempt("ada", "127.0.0.1", is_address_shared=True)
    for _ in range(FREE_FAILURES + 6):
        clock[0] += throttle.wait(shared)
        throttle.begin(shared)
    assert throttle.wait(shared) == 90
    clock[0] += 90 + 3_601
    throttle.begin(shared)
    assert throttle.wait(shared) == 0


def test_many_names_and_addresses_are_slowed_in_any_pairing() -> None:
    clock = [0.0]
    throttle = LoginThrottle(now=lambda: clock[0])
    # A customer's IPv6 addresses count as one.
    for number in range(FAILURES_OF_ADDRESS):
        throttle.begin(Attempt(f"name {number}", f"2001:db8::{number}"))
    assert throttle.wait(Attempt("another", "2001:db8::ffff")) == 10
    assert throttle.wait(Attempt("another", "2001:db8:0:1::1")) == 0
    clock[0] += 10
    assert throttle.wait(Attempt("another", "2001:db8::ffff")) == 0
    for number in range(FAILURES_OVERALL):
        throttle.begin(Attempt(f"name {number}", f"203.0.{number // 200}.{number % 200}"))
    assert throttle.wait(Attempt("another", "192.0.2.1")) > 0
    assert throttle.wait(Attempt("another", "192.0.2.1", device="known")) == 0


def test_no_flood_of_names_fills_the_memory() -> None:
    throttle = LoginThrottle(now=lambda: 0.0, remembered=3)
    for number in range(20):
        throttle.wait(Attempt(f"asked {number}", f"203.0.113.{number}"))
        throttle.begin(Attempt(f"tried {number}", f"203.0.113.{number}"))
    assert len(throttle._pairs) == len(throttle._addresses) == 3


def test_sessions_end_when_idle_old_or_without_a_login(
    tmp_path: Path,
) -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    people = accounts_of(settings).logins
    ada = people.save(ADA, user_id="acme", password=PASSWORD)
    token = people.open_session(ada, now)
    assert people.of_session(token, now + SESSION_IDLE) == ada
    # Used then, it is valid for as long again.
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
    with pytest.raises(AccountsError, match="No login is named"):
        people.remove(ADA)


def test_pages_with_a_session_do_not_wait_for_a_writer(closed: Served) -> None:
    ada = closed.signed_in(ADA)
    long_ago = update(sessions).values(seen_at=datetime.now(UTC) - timedelta(hours=1))
    with closed.accounts.database.write() as database:
        database.execute(long_ago)
    with closed.accounts.database.write():
        assert closed.get("/users/acme/overview", headers=ada, timeout=5).status_code == 200
    # The next request is recorded, and waits for writers as before.
    assert closed.get("/users/acme/plan", headers=ada).status_code == 200
    with closed.accounts.database.read() as database:
        seen = database.scalars(select(sessions.c.seen_at)).all()
    assert max(seen) > datetime.now(UTC) - timedelta(minutes=5)
    raw = closed.accounts.database.engine.raw_connection()
    assert raw.cursor().execute("PRAGMA busy_timeout").fetchone() == (30_000,)
    raw.close()


def test_stored_hashes_cannot_sign_in(closed: Served) -> None:
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


def test_no_next_parameter_leads_to_another_site(closed: Served) -> None:
    for after in ELSEWHERE:
        shown = closed.get("/sign-in", params={"next": after})
        assert shown.status_code == 200
        assert read_html(shown.text).one("input", name="next").attributes["value"] == "/"
    answers = [sign_in(closed, ADA, PASSWORD, after) for after in ("//evil.example/", "//[", "/\r\nA: b")]
    assert [answer.headers["location"] for answer in answers] == ["/", "/", "/"]
    kept = "/users/acme/overview?period=7d&model=a%2F%2Fb"
    shown = closed.get("/sign-in", params={"next": kept})
    assert read_html(shown.text).one("input", name="next").attributes["value"] == kept


# Other users' data.


def test_another_users_pages_are_not_found(closed: Served, installation: Installation) -> None:
    ada = closed.signed_in(ADA)
    bolt = installation.openai.organizations[1]
    connection = closed.accounts.connections.get("bolt")
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
    assert closed.accounts.connections.get("bolt") == connection
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
    assert "mine" not in closed.accounts.users.ids()


def test_a_users_pages_show_nothing_of_other_users(closed: Served, installation: Installation) -> None:
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


def test_only_operators_change_plans_and_see_all_users(closed: Served) -> None:
    ada, operator = closed.signed_in(ADA), closed.signed_in(OPERATOR)
    refused = closed.post("/users/acme/plan", {"plan": "enterprise"}, headers=ada)
    assert refused.status_code == 403
    assert "Only operators can change plans." in refused.text
    assert closed.accounts.users.plans()["acme"].name == "growth"
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
    assert closed.accounts.users.plans()["tiny"].name == "growth"
    unknown = closed.post("/users/tiny/plan", {"plan": "gold"}, headers=operator)
    assert unknown.status_code == 422
    assert "Unknown plan “gold”" in unknown.text
    made = closed.post("/users", {"user_id": " new.user "}, headers=operator)
    assert made.headers["location"] == "/users/new.user/settings/keys"
    refused = closed.post("/users", {"user_id": "../etc"}, headers=operator)
    assert refused.status_code == 422
    assert "cannot be a user id" in refused.text


def test_many_users_are_listed_page_by_page(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    with dashboard(settings) as served:
        for number in range(53):
            served.accounts.users.add(f"user-{number:02}")
        for query, first, last, number in (
            ("", "user-00", "user-49", 50),
            ("?from=50", "user-50", "user-52", 3),
        ):
            page = served.page(f"/users{query}")
            names = [row.one("a").text for row in page.one("tbody").all("tr")]
            assert (names[0], names[-1], len(names)) == (first, last, number)
        for odd in ("-1", "x", "99999999999999999999", "１", "60"):
            assert served.get("/users", params={"from": odd}).status_code == 200


# Addresses that the server may listen on.


@pytest.mark.parametrize(
    ("host", "public_url", "has_sign_in", "reason"),
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
def test_a_public_dashboard_needs_https_and_sign_in(
    host: str, public_url: str | None, has_sign_in: bool, reason: str
) -> None:
    with pytest.raises(ExposedWithoutSignIn, match=reason):
        exposure(host, 8000, public_url, has_sign_in)


def test_exposure_has_the_origins_browsers_use() -> None:
    here = exposure("127.0.0.1", 8000, None, False)
    assert not here.is_public
    assert "http://localhost:8000" in here.origins
    assert not exposure("localhost", 8000, None, True).is_public
    there = exposure("0.0.0.0", 8000, PUBLIC_URL + "/", True)
    assert (there.origins, there.is_public) == (frozenset([PUBLIC_URL]), True)
    # As browsers write the same address.
    assert exposure("0.0.0.0", 8000, "https://Finora.Example.com:443", True).origins == {PUBLIC_URL}
    assert "http://localhost" in exposure("127.0.0.1", 80, None, False).origins


def test_an_unsafe_combination_of_options_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_terminal_creates_and_ends_logins() -> None:
    terminal = CliRunner()

    def finora(*words: str, said: str = "") -> tuple[int, str]:
        result = terminal.invoke(main, list(words), input=said)
        return result.exit_code, result.output

    assert finora("login", "add", ADA, "--user", "acme", said=f"{PASSWORD}\n") == (
        0, f"{ADA} may sign in and sees acme.\n")  # fmt: skip
    assert finora("login", "add", OPERATOR, "--operator", "--no-password")[0] == 0
    for wrong in (["login", "add", "x"], ["login", "add", "x", "--user", "a", "--operator"]):
        code, output = finora(*wrong, said=PASSWORD)
        assert (code, "Say --user U or --operator." in output) == (2, True)
    code, output = finora("login", "add", "x", "--operator", said="short\n")
    assert (code, "Take a password of 12 to 1000 characters." in output) == (1, True)
    assert finora("login", "add", " ", "--operator", said=f"{PASSWORD}\n")[0] == 1
    assert finora("login", "add", "x", "--user", "../x", said=f"{PASSWORD}\n")[0] == 1

    people = accounts_of(Settings.from_environment()).logins
    assert [(one.name, one.user_id, one.has_password) for one in people.all()] == [
        (ADA, "acme", True),
        (OPERATOR, None, False),
    ]
    assert people.by_password(ADA, PASSWORD) == people.get(ADA)
    assert people.by_password(OPERATOR, PASSWORD) is None
    code, output = finora("login", "list")
    assert code == 0
    assert "identity provider" in output
    assert PASSWORD not in finora("login", "list", "--json")[1]
    now = datetime.now(UTC)
    login = people.get(ADA)
    assert login is not None
    token = people.open_session(login, now)
    assert finora("login", "sign-out", ADA) == (0, f"Ended 1 sessions of {ADA}.\n")
    assert finora("login", "sign-out", "missing@example.com") == (
        1,
        "Error: No login is named missing@example.com.\n",
    )
    assert people.of_session(token, now) is None
    assert finora("login", "remove", ADA)[0] == 0
    assert people.get(ADA) is None
    code, output = finora("login", "remove", ADA)
    assert (code, f"No login is named {ADA}." in output) == (1, True)
    assert finora("dashboard", "--host", "0.0.0.0")[0] == 1
