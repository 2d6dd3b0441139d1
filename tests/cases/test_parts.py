"""Each part of a fetch has its own outcome.

A failed part is missing and named in the status; the connection's state and pace do not change.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from tests.cases.conftest import KEY_ADVICE, Case, assert_usual, served
from tests.cases.organizations import error, usual
from tests.cases.server import DIMENSIONS, Fault, fault_of

HTML = (
    "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Enable JavaScript</body></html>"
)
OWN_WORDS = "This is not available to your organization, says OpenAI."
ANSWERS: dict[str, dict[str, Any]] = {
    "400": {"status": 400, "body": error(OWN_WORDS)},
    "401": {"status": 401, "body": error(OWN_WORDS)},
    "403": {"status": 403, "body": error(OWN_WORDS)},
    "403_text": {"status": 403, "body": {"error": OWN_WORDS}},
    "404": {"status": 404, "body": error(OWN_WORDS)},
    "429_spent": {"status": 429, "body": error(OWN_WORDS, "organization_usage_limit_exceeded")},
    "500": {"status": 500, "body": error(OWN_WORDS, kind="server_error")},
    "403_page": {"status": 403, "body": HTML, "headers": {"content-type": "text/html"}},
    "200_page": {"status": 200, "body": HTML, "headers": {"content-type": "text/html"}},
}
REFUSALS = ("400", "401", "403", "403_text", "404")
ENDPOINTS = [name for name in DIMENSIONS if name != "costs"]
LISTS = {
    "projects": ("/organization/projects$", "projects"),
    "users": ("/organization/users$", "members"),
    "api_keys": ("/projects/proj_case0001/api_keys$", "keys"),
    "service_accounts": ("/projects/proj_case0001/service_accounts$", "service accounts"),
}
USE_PATH = "/usage/{}$"
# Neutral names: a status that names a part must not match its user id.
FEW, THOROUGHLY_TRIED = ("400", "401", "403", "404", "500"), ("completions", "vector_stores", "decisions")
USE_USERS = {
    (name, answer): f"use-{number}"
    for number, (name, answer) in enumerate(product(ENDPOINTS, ANSWERS))
    if answer in FEW or name in THOROUGHLY_TRIED
}
LIST_USERS = {pair: f"list-{number}" for number, pair in enumerate(product(LISTS, ANSWERS))}


def faults(path: str, answer: str) -> list[Fault]:
    return [fault_of({"path": path} | ANSWERS[answer])]


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A user for each usage endpoint and kind of failure, and one without, after a refresh."""
    texts = dict.fromkeys(("whole", *USE_USERS.values()), usual())
    with served(tmp_path_factory.mktemp("endpoints") / "home", texts) as case:
        connected = case.connect_all("enterprise")
        assert connected.exit_code == 0, connected.output
        for (name, answer), user in USE_USERS.items():
            case.organization(user).faults = faults(USE_PATH.format(name), answer)
        result = case.refresh_impatiently()
        assert result.succeeded, result.errors
        yield case


@pytest.mark.parametrize(("name", "answer"), USE_USERS)
def test_a_failed_usage_endpoint_costs_only_its_own_rows(endpoints: Case, name: str, answer: str):
    user = USE_USERS[name, answer]
    if name == "completions":
        # Without usage no charge can be split; the total stays complete.
        assert endpoints.bill(user) == 2
        assert endpoints.by_model(user) == {"gpt-5.5-2026-04-23": 2}
    else:
        assert_usual(endpoints, user)
    assert endpoints.directory(user) == {"projects": 2, "members": 2, "api_keys": 1}
    status = endpoints.status(user)
    assert (status["status"], status["status_reason"]) == ("active", None)
    said = endpoints.words(user)
    assert name in said
    assert not KEY_ADVICE.search(said)
    if "page" not in answer:
        assert OWN_WORDS in said


def test_a_failed_part_delays_no_other_part(endpoints: Case):
    assert_usual(endpoints, "whole")
    assert endpoints.status("whole")["last_failure"] is None
    for status in endpoints.json("status"):
        refreshed, promised = (
            datetime.fromisoformat(status[name]) for name in ("last_refresh_at", "next_refresh_at")
        )
        assert promised - refreshed == timedelta(minutes=15), status["user_id"]


def test_a_refused_endpoint_is_fetched_once_a_day_until_it_heals(endpoints: Case):
    def asked() -> dict[tuple[str, str], int]:
        return {
            pair: endpoints.organization(user).asked(USE_PATH.format(pair[0]))
            for pair, user in USE_USERS.items()
            if pair[1] in REFUSALS
        }

    before = asked()
    assert endpoints.refresh_impatiently().succeeded
    assert asked() == before
    healed = USE_USERS["completions", "500"]
    endpoints.organization(healed).faults.clear()
    endpoints.ok("refresh", "--user", healed)
    assert_usual(endpoints, healed)
    assert OWN_WORDS not in endpoints.words(healed)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A user for each directory list and kind of failure, after the first refresh."""
    texts = dict.fromkeys(LIST_USERS.values(), usual())
    with served(tmp_path_factory.mktemp("lists") / "home", texts) as case:
        connected = case.connect_all()
        assert connected.exit_code == 0, connected.output
        for (name, answer), user in LIST_USERS.items():
            case.organization(user).faults = faults(LISTS[name][0], answer)
        result = case.refresh_impatiently()
        assert result.succeeded, result.errors
        yield case


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", LISTS)
def test_a_failed_directory_list_costs_only_its_own_names(lists: Case, name: str, answer: str):
    user = LIST_USERS[name, answer]
    assert lists.bill(user) == 2
    status = lists.status(user)
    assert (status["status"], status["status_reason"]) == ("active", None)
    said = lists.words(user)
    assert not KEY_ADVICE.search(said)
    # A project unknown to OpenAI has neither keys nor service accounts.
    if answer != "404" or name in ("projects", "users"):
        assert LISTS[name][1] in said.replace("_", " ")
    if name != "projects":
        assert lists.by("project_name", "named_member_costs", user) == {"Alpha": 2}
    if name in ("service_accounts", "api_keys"):
        assert lists.by_member(user) == {"Member One": 2}
    if name in ("service_accounts", "users"):
        assert lists.by_key(user) == {"prod key": 2}


@pytest.mark.parametrize("answer", ["400", "403", "404", "403_page", "200_page"])
def test_connect_needs_no_list_of_projects(play, answer: str):
    case = play(case=usual(faults=[{"path": LISTS["projects"][0]} | ANSWERS[answer]]))
    connected = case.connect()
    assert connected.exit_code == 0, connected.output
    assert case.refresh_impatiently().succeeded
    assert case.bill() == 2


SPLITS = ("user_id", "api_key_id")


@pytest.mark.parametrize("answer", ["400", "403", "404", "500", "403_page"])
def test_a_split_of_the_costs_is_optional(play, answer: str):
    wanted = [{"path": "/organization/costs$", "query": dimension} | ANSWERS[answer] for dimension in SPLITS]
    case = play(case=usual(faults=wanted, groupings=list(SPLITS)))
    assert case.connect().exit_code == 0
    assert case.refresh_impatiently().succeeded
    assert_usual(case)
    assert case.status()["status"] == "active"


# Errors of a whole organization: status, code, message, whether the key is the cause.
WHOLE = {
    "address": (401, "ip_not_authorized", "Your IP is not on the allowlist of your organization.", False),
    "host": (401, "incorrect_hostname", "Use https://eu.api.openai.com for this project.", False),
    "member": (401, "no_organization", "You must be a member of an organization to use the API.", False),
    "country": (403, "unsupported_country_region_territory", "Country or territory not supported.", False),
    "blocked": (403, None, "Your account has been flagged for review.", False),
    "unknown": (401, "some_code_of_tomorrow", "Something new is wrong.", False),
    "spent": (429, "organization_spend_limit_exceeded", "Your organization's spend limit is reached.", False),
    "project": (429, "project_spend_limit_exceeded", "The spend limit of the project is reached.", False),
    "use": (429, "organization_usage_limit_exceeded", "The usage limit is reached.", False),
    "empty": (429, "credit_balance_exhausted", "Your credit balance is exhausted.", False),
    "quota": (429, "insufficient_quota", "You exceeded your current quota.", False),
    "revoked": (401, "invalid_api_key", "Incorrect API key provided: sk-admin*hij.", True),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Users whose costs are all refused after the first refresh, and one without a fault."""
    texts = dict.fromkeys(("served", *WHOLE), usual())
    with served(tmp_path_factory.mktemp("whole") / "home", texts) as case:
        assert case.connect_all().exit_code == 0
        assert case.refresh_impatiently().succeeded
        for user, (status, code, words, _) in WHOLE.items():
            answer = {"status": status, "body": error(words, code)}
            case.organization(user).faults = [fault_of({"path": "/organization/costs$"} | answer)]
            case.organization(user).requests.clear()
        case.refresh_impatiently()
        yield case


@pytest.mark.parametrize("user", WHOLE)
def test_a_refusal_shows_openais_reason(refused: Case, user: str):
    _, _, words, is_the_key = WHOLE[user]
    said = refused.words(user)
    assert is_the_key or words in said
    assert bool(KEY_ADVICE.search(said)) is is_the_key
    assert refused.bill(user) == 2
    (connection,) = refused.installation.accounts.connections.all(user_ids=[user])
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert connection.may_be_fetched(soon) is not is_the_key


@pytest.mark.parametrize("user", [user for user, (status, *_) in WHOLE.items() if status == 429])
def test_a_lasting_refusal_is_not_retried(refused: Case, user: str):
    assert (
        refused.organization(user).asked("/organization/costs$", "line_item(?!.*(user_id|api_key_id))") == 1
    )
    assert "rate limit" not in refused.words(user).lower()


def test_one_users_fault_leaves_the_others_refreshed(refused: Case):
    assert_usual(refused, "served")
    assert refused.status("served")["last_failure"] is None


BODIES = {
    "page_200": (200, HTML),
    "page_403": (403, HTML),
    "page_502": (502, "<html><body>502 Bad Gateway</body></html>"),
    "page_503": (503, "<html><body>Service unavailable</body></html>"),
    "empty": (200, ""),
    "text": (200, "upstream connect error"),
}


@pytest.fixture(scope="module")
def odd_bodies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Users whose costs get a foreign response, each kind for ever and once."""
    users = [f"{name}{suffix}" for name in BODIES for suffix in ("", "_once")]
    with served(tmp_path_factory.mktemp("bodies") / "home", dict.fromkeys(users, usual())) as case:
        assert case.connect_all().exit_code == 0
        for user in users:
            status, body = BODIES[user.removesuffix("_once")]
            fault = fault_of({"path": "/organization/costs$", "status": status, "body": body})
            fault.times = 1 if user.endswith("_once") else None
            case.organization(user).faults = [fault]
        case.refresh_impatiently()
        yield case


@pytest.mark.parametrize("name", BODIES)
def test_an_answer_not_from_openai_is_retried(odd_bodies: Case, name: str):
    assert_usual(odd_bodies, f"{name}_once")
    assert odd_bodies.status(f"{name}_once")["last_failure"] is None
    said = odd_bodies.words(name)
    assert not KEY_ADVICE.search(said)
    assert "127.0.0.1" in said, "the host that answered is named"
    assert "byte 0" not in said
    (connection,) = odd_bodies.installation.accounts.connections.all(user_ids=[name])
    assert connection.may_be_fetched(datetime.now(UTC) + timedelta(hours=1))
