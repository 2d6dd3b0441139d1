"""Settings → API Keys: a key is checked before it is stored, and never comes back."""

import base64
import logging
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from finora_pipeline.accounts import onboarding as connections
from finora_pipeline.accounts.model import Status
from finora_pipeline.openai_simulator import Fault, FaultKind, KeyState
from tests.conftest import QUICK, Installation
from tests.dashboard.served import Node, Served, dashboard, read_html
from tests.dashboard.test_states import REVOKED, attempt
from tests.pipeline.test_no_leak import forms
from tests.small_openai import fresh_key

UNKNOWN = "sk-admin-thiskeyisknowntonobody0123456789"
TITLES = {"no answer": "We couldn’t reach OpenAI. "}
REASONS = {
    "project key": "This is a project key, which cannot read billing data.",
    "no key": "No key was given: paste the Admin key",
    "another text": "This is not an OpenAI Admin key",
    "half a key": "This Admin key is incomplete",
    "deleted": "OpenAI does not accept this key: it was deleted or revoked.",
    "without scope": "may not read",
    "demoted": "may not read",
    "no answer": "OpenAI",
}


def save(served: Served, user_id: str, key: str, provider: str = "openai") -> httpx.Response:
    return served.post(f"/users/{user_id}/settings/keys", {"provider": provider, "key": key})


def message_of(answer: httpx.Response) -> str:
    return read_html(answer.text).one("div", id="key-error").text


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time-out for an OpenAI that does not answer."""
    monkeypatch.setattr(connections, "CHECK_LIMITS", QUICK)


@pytest.fixture
def bad_keys(installation: Installation) -> Iterator[dict[str, str]]:
    """Keys to refuse, one for each reason."""
    openai = installation.openai
    keys = {name: fresh_key(openai, 0) for name in ("deleted", "without scope", "demoted", "no answer")}
    for name, state in (
        ("deleted", KeyState.REVOKED),
        ("without scope", KeyState.RESTRICTED),
        ("demoted", KeyState.DEMOTED),
    ):
        openai.simulator.set_key_state(keys[name], state)
    yield keys | {
        "project key": "sk-proj-0123456789abcdef0123456789",
        "no key": " ",
        "another text": "my key",
        "half a key": "sk-admin-abc",
    }
    openai.simulator.clear_faults()


@pytest.mark.parametrize("reason", REASONS)
def test_a_key_that_does_not_work_is_refused_with_a_reason(
    reason: str, bad_keys: dict[str, str], installation: Installation, local: Served
) -> None:
    accounts = installation.accounts
    if accounts.connections.get("careful") is None:
        local.connect("careful", installation.openai.organizations[0].admin_key)
    before, key = (
        accounts.connections.get("careful"),
        accounts.connections.key_ring(["careful"]).key_of("careful").reveal(),
    )
    if reason == "no answer":
        organization = installation.openai.organizations[0]
        installation.openai.simulator.add_fault(organization, Fault(FaultKind.SERVER_ERROR))

    for user_id in ("newcomer", "careful"):
        answer = save(local, user_id, bad_keys[reason])
        assert answer.status_code == 422
        assert REASONS[reason] in message_of(answer)
        assert message_of(answer).startswith(TITLES.get(reason, "This key doesn’t work. "))
        assert message_of(answer).endswith("The old key keeps working.") == (user_id == "careful")
        if len(bad_keys[reason]) > 10:
            assert bad_keys[reason] not in answer.text
    assert accounts.connections.get("newcomer") is None
    assert accounts.connections.get("careful") == before
    assert accounts.connections.key_ring(["careful"]).key_of("careful").reveal() == key


def test_an_unreachable_openai_is_reported(installation: Installation) -> None:
    # The port of the discard protocol: nothing listens there.
    settings = replace(installation.settings, openai_base_url="http://127.0.0.1:9/v1")
    with dashboard(settings) as served:
        answer = save(served, "newcomer", UNKNOWN)
    assert answer.status_code == 422
    assert message_of(answer).startswith("We couldn’t reach OpenAI. ")
    assert installation.accounts.connections.get("newcomer") is None


def test_a_key_of_another_organization_is_refused(installation: Installation, local: Served) -> None:
    local.connect("mixed", installation.openai.organizations[0].admin_key)
    before = installation.accounts.connections.get("mixed")
    answer = save(local, "mixed", fresh_key(installation.openai, 1))
    assert answer.status_code == 422
    assert message_of(answer).startswith("The organization does not match. This key belongs to another")
    assert installation.accounts.connections.get("mixed") == before


@pytest.mark.parametrize("is_removed", [False, True])
def test_another_organization_takes_over_when_confirmed(
    is_removed: bool, installation: Installation, local: Served
) -> None:
    user_id = f"moved-{is_removed}"
    local.connect(user_id, installation.openai.organizations[0].admin_key)
    if is_removed:
        local.post(f"/users/{user_id}/settings/keys/remove")
    assert box(local.get(f"/users/{user_id}/settings/keys?update=yes")) == []
    assert box(save(local, user_id, "my key")) == []
    key = fresh_key(installation.openai, 1)
    refused = save(local, user_id, key)
    assert "--" not in message_of(refused)
    (ticked,) = box(refused)
    assert "checked" not in ticked.attributes
    form = {"provider": "openai", "key": key, ticked.attributes["name"]: ticked.attributes["value"]}
    assert local.post(f"/users/{user_id}/settings/keys", form).status_code == 303
    connection = installation.accounts.connections.get(user_id)
    assert connection is not None
    assert connection.organization.organization_id == installation.openai.organizations[1].id
    assert connection.organization_since == installation.today


def box(answer: httpx.Response) -> list[Node]:
    """Return the boxes that let another organization take over."""
    return read_html(answer.text).all("input", type="checkbox")


def test_a_key_refused_by_openai_is_not_shown_as_working(installation: Installation, local: Served) -> None:
    local.connect("deleted", installation.openai.organizations[0].admin_key)
    settings = "/users/deleted/settings/keys"
    assert next_refresh(local.page(settings)) == "under way"
    assert "The old key works until you save." in local.get(f"{settings}?update=yes").text
    attempt(installation, "deleted", REVOKED, permanent=True)

    page = local.page(f"{settings}?update=yes")
    assert next_refresh(page).startswith("retried after ")
    assert "The old key" not in page.text
    assert message_of(save(local, "deleted", "my key")).startswith(
        "This key doesn’t work. This is not an OpenAI"
    )
    assert "The old key" not in message_of(save(local, "deleted", "my key"))
    for saved in ("connected", "updated", "same", "removed"):
        assert local.page(f"{settings}?saved={saved}").all("section", class_="success") == []


def next_refresh(page: Node) -> str:
    (row,) = [row for row in page.one("dl").all("div") if row.one("dt").text == "Next refresh"]
    return row.one("dd").text


@pytest.mark.parametrize(
    ("user_id", "true"), [("acme", {"connected", "updated", "same"}), ("gone", {"removed"})]
)
def test_the_notice_of_a_saved_key_disappears_when_outdated(
    user_id: str, true: set[str], local: Served
) -> None:
    page = f"/users/{user_id}/settings/keys?saved="
    banners = {
        saved: len(local.page(page + saved).all("section", class_="success"))
        for saved in ("connected", "updated", "same", "removed", "anything")
    }
    assert {saved for saved, number in banners.items() if number} == true


def test_a_key_saved_after_the_confirmation_page_is_not_removed(
    installation: Installation, local: Served
) -> None:
    local.connect("shared", installation.openai.organizations[0].admin_key)
    page = "/users/shared/settings/keys/remove"
    seen = asked_about(read_html(local.get(page).text))
    newer = fresh_key(installation.openai, 0)
    assert save(local, "shared", newer).status_code == 303

    refused = local.post(page, seen)
    assert refused.status_code == 409
    asked_again = read_html(refused.text)
    assert "The key of shared was changed at the same time" in asked_again.one("div", class_="error").text
    assert asked_again.one("code").text == f"sk-admin-…{newer[-4:]}"
    assert local.post(page, asked_about(asked_again)).headers["location"].endswith("?saved=removed")
    connection = installation.accounts.connections.get("shared")
    assert connection is not None
    assert connection.status is Status.REMOVED


def test_the_key_in_use_is_recognized(installation: Installation, local: Served) -> None:
    key = installation.openai.organizations[0].admin_key
    local.connect("again", key)
    location = save(local, "again", key).headers["location"]
    assert location == "/users/again/settings/keys?saved=same"
    assert (
        local.page(location).one("section", class_="success").one("h2").text == "That key is already in use"
    )
    crafted = local.get("/users/again/settings/keys?saved=updated&old=<b>x")
    assert "(…" not in crafted.text


def asked_about(page: Node) -> dict[str, str]:
    """Return the hidden fields that identify the form's key."""
    return {"key_version": page.one("input", name="key_version").attributes["value"] or ""}


def test_another_provider_is_refused(local: Served) -> None:
    assert save(local, "newcomer", UNKNOWN, provider="anthropic").status_code == 422


@pytest.mark.slow
def test_connect_update_and_remove_leave_no_key_anywhere(
    installation: Installation, local: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    accounts, openai = installation.accounts, installation.openai
    first, second = fresh_key(openai, 0), fresh_key(openai, 0)
    answers = [save(local, "whole", UNKNOWN)]

    answers.append(save(local, "whole", f" {first}\n"))
    assert answers[-1].status_code == 303
    assert answers[-1].headers["location"] == "/users/whole/settings/keys?saved=connected"
    answers.append(local.get(answers[-1].headers["location"]))
    page = read_html(answers[-1].text)
    assert page.one("section", class_="success").one("h2").text == "OpenAI is connected"
    assert page.all("code")[0].text == f"sk-admin-…{first[-4:]}"
    assert accounts.connections.key_ring(["whole"]).key_of("whole").reveal() == first

    answers.append(save(local, "whole", second))
    replaced = answers[-1].headers["location"]
    assert replaced == f"/users/whole/settings/keys?saved=updated&old={first[-4:]}"
    answers += [local.get(replaced), local.get("/users/whole/settings/keys?update=yes")]
    success = read_html(answers[-2].text).one("section", class_="success")
    assert success.one("h2").text == "Key replaced"
    assert success.one("p").text.endswith(f"You can delete the old key (…{first[-4:]}) in OpenAI.")
    connection = accounts.connections.get("whole")
    assert connection is not None
    assert connection.key_version == 2
    assert accounts.connections.key_ring(["whole"]).key_of("whole").reveal() == second

    # A key pasted into the wrong field is not kept, either.
    for form, path in (
        ({"user_id": f"key {second}"}, "/users"),
        ({"plan": second}, "/users/whole/plan"),
        ({"provider": second, "key": second}, "/users/whole/settings/keys"),
    ):
        answers.append(local.post(path, form))
        assert answers[-1].status_code == 422

    answers.append(local.get("/users/whole/settings/keys/remove"))
    assert "Remove OpenAI?" in answers[-1].text
    answers.append(local.post("/users/whole/settings/keys/remove"))
    assert answers[-1].headers["location"] == "/users/whole/settings/keys?saved=removed"
    answers.append(local.get(answers[-1].headers["location"]))
    assert "The stored key is deleted." in answers[-1].text
    connection = accounts.connections.get("whole")
    assert connection is not None
    assert connection.status is Status.REMOVED
    # Again, from an outdated page: the key is already removed.
    answers.append(local.post("/users/whole/settings/keys/remove", {"key_version": "9" * 5000}))
    assert answers[-1].headers["location"] == "/users/whole/settings/keys"
    assert local.get("/users/whole/settings/keys/remove").status_code == 303
    answers.append(local.get("/users/whole/overview"))
    answers.append(save(local, "whole", first))
    assert answers[-1].headers["location"].endswith("saved=connected")
    assert accounts.audit.of_user("whole")[-1].action == "connect"

    seen = "\n".join(f"{answer.headers}{answer.text}" for answer in answers) + caplog.text
    # The rest of the data folder is the pipeline's, whose own tests look through it.
    files = [(path, path.read_bytes()) for path in installation.settings.home.iterdir() if path.is_file()]
    assert any(path.name == "accounts.sqlite" for path, _ in files)
    for key in (UNKNOWN, first, second):
        for form in forms(key):
            assert form.decode() not in seen
            assert [str(path) for path, content in files if form in content] == []
    assert base64.b64encode(first.encode()).decode() not in seen
