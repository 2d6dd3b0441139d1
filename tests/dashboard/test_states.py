"""Pages show a connection's state, the next action and the freshness of figures."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connections, users
from finora_pipeline.accounts.model import CompleteRefresh, Connection, Refresh
from finora_pipeline.dashboard import notices as states
from finora_pipeline.dashboard.notices import Freshness, freshness
from finora_pipeline.dashboard.snapshots import Snapshots
from tests.conftest import Installation, OpenAI
from tests.dashboard.served import Node, Served, dashboard
from tests.small_openai import fresh_key

SAMPLE = "This is sample data of an imaginary organization"
REVOKED = "OpenAI refused the key: create a new one."


def notices(page: Node) -> list[str]:
    """Return the titles of notices above the figures."""
    return [notice.one("h2").text for notice in page.all("section", class_="notice")]


def figures(page: Node) -> dict[str, str]:
    """Return the exact figure of each tile."""
    return {
        tile.one("h2").text: tile.one("p", class_="value").title for tile in page.all("div", class_="tile")
    }


def actions(page: Node) -> list[tuple[str, str | None]]:
    """Return the buttons of notices above the figures with their targets."""
    links = [link for notice in page.all("section", class_="notice") for link in notice.all("a")]
    return [(link.text, link.attributes["href"]) for link in links]


def attempt(
    installation: Installation,
    user_id: str,
    message: str | None = None,
    permanent: bool = False,
    needs_person: bool = False,
) -> datetime:
    """Record a fetch that just ended, as a refresh does; return when it began."""
    now = datetime.now(UTC)
    outcome = Refresh(
        user_id, now.date() - timedelta(89), now.date() + timedelta(1), now, now, 1,
        reason="failure" if message else None, message=message, permanent=permanent,
        needs_person=needs_person,
    )  # fmt: skip
    installation.accounts.refreshes.record(f"run-{user_id}-{now:%s%f}", [outcome])
    return now


def published(installation: Installation, user_id: str, at: datetime) -> None:
    """Record that the fetch begun at that moment is published."""
    read = CompleteRefresh("run", user_id, at, at.date() + timedelta(1))
    installation.accounts.refreshes.mark_published([read], datetime.now(UTC))


def connected(installation: Installation, user_id: str, at: datetime) -> None:
    """Set the time at which the user connected."""
    with installation.accounts.database.write() as database:
        chosen = update(connections).where(connections.c.user_id == user_id)
        database.execute(chosen.values(connected_at=at, changed_at=at))
        database.execute(update(users).where(users.c.user_id == user_id).values(plan_since=at))


def test_without_a_connection_a_sample_is_shown(local: Served) -> None:
    page = local.page("/users/stranger/overview")
    assert notices(page) == [SAMPLE]
    assert actions(page) == [("Connect OpenAI", "/users/stranger/settings/keys")]
    assert page.all("p", class_="value")[0].title != "0"
    assert page.all("p", class_="freshness") == []
    assert local.get("/users/stranger/state").json() == {"state": "none"}
    exported = local.get("/users/stranger/overview.csv")
    assert exported.status_code == 403


def test_figures_without_a_connection_are_not_replaced_by_samples() -> None:
    (shown,) = states.notices(None, None, is_sample=False)
    assert (shown.kind, shown.title, shown.action) == ("info", "OpenAI is not connected", "Connect OpenAI")
    assert shown.text == "The costs shown here were fetched before."


def test_the_first_refresh_shows_its_progress(installation: Installation, local: Served) -> None:
    local.connect("fresh", installation.openai.organizations[3].admin_key)
    page = local.page("/users/fresh/overview")
    assert notices(page) == ["First refresh under way", SAMPLE]
    shown = page.one("section", class_="sample").one("p").text
    assert shown == "Your own figures replace it with the first refresh."
    steps = [step.text for step in page.one("ol", class_="steps").all("li")]
    assert steps == [
        "Key checked with OpenAI: done",
        "Cost history fetched: waiting",
        "Figures published: waiting",
    ]
    body = page.one("body")
    assert body.attributes["data-state-url"] == "/users/fresh/state"
    asked = local.get("/users/fresh/state")
    assert asked.json() == {"state": body.attributes["data-state"]}
    assert local.get("/users/fresh/overview.csv").headers["content-disposition"].count("sample-costs") == 1

    attempt(installation, "fresh")
    assert local.get("/users/fresh/state").json() != asked.json()
    steps = [step.text for step in local.page("/users/fresh/overview").one("ol", class_="steps").all("li")]
    assert steps[1] == "Cost history fetched: done"

    published(installation, "fresh", datetime.now(UTC))
    page = local.page("/users/fresh/overview")
    assert notices(page) == [SAMPLE]
    shown = page.one("section", class_="sample").one("p").text
    assert shown == "Your own figures replace it with the next refresh."
    assert page.one("p", class_="freshness").text.startswith(
        "Refreshed less than a minute ago · next within 23 h"
    )


def test_a_connection_needing_attention_shows_its_reason(installation: Installation, local: Served) -> None:
    local.connect("refused", installation.openai.organizations[0].admin_key)
    attempt(installation, "refused", REVOKED, permanent=True)
    page = local.page("/users/refused/overview")
    (title, sample) = notices(page)
    assert title.startswith("Your OpenAI key stopped working on ")
    assert sample == SAMPLE
    assert page.one("section", class_="error").one("p").text == REVOKED
    assert actions(page) == [("Update the key", "/users/refused/settings/keys?update=yes")]
    settings = local.page("/users/refused/settings/keys")
    assert settings.one("span", class_="needs-attention").text == "needs attention"
    assert settings.one("p", class_="error").text == REVOKED


def test_attention_that_is_not_about_the_key_names_no_key(installation: Installation, local: Served) -> None:
    local.connect("blocked", installation.openai.organizations[0].admin_key)
    attempt(installation, "blocked", "Add this server to the IP allowlist.", needs_person=True)
    page = local.page("/users/blocked/overview")
    assert notices(page)[0].startswith("Refreshes have failed since ")
    assert page.one("section", class_="error").one("p").text == "Add this server to the IP allowlist."
    assert actions(page) == [("Open Settings", "/users/blocked/settings/keys")]


def test_a_just_saved_key_is_not_shown_as_failed(installation: Installation, local: Served) -> None:
    local.connect("mended", installation.openai.organizations[0].admin_key)
    attempt(installation, "mended", REVOKED, permanent=True)
    key = fresh_key(installation.openai, 0)
    local.post("/users/mended/settings/keys", {"provider": "openai", "key": key})
    page = local.page("/users/mended/overview")
    assert notices(page) == ["First refresh under way", SAMPLE]
    steps = [step.text for step in page.one("ol", class_="steps").all("li")]
    assert steps[1] == "Cost history fetched: waiting"
    assert REVOKED not in local.page("/users/mended/settings/keys").text


def test_a_transient_failure_shows_when_it_is_retried(installation: Installation, local: Served) -> None:
    local.connect("unlucky", installation.openai.organizations[0].admin_key)
    attempt(installation, "unlucky", "OpenAI answered 500.")
    page = local.page("/users/unlucky/overview")
    assert notices(page)[0].startswith("We couldn’t fetch from OpenAI at ")
    assert notices(page)[1:] == [SAMPLE]
    assert (
        page.one("section", class_="warning").one("p").text
        == "OpenAI answered 500. The next refresh retries."
    )
    shown = local.page("/users/unlucky/settings/keys").one("p", class_="warning").text
    assert shown == "The last attempt failed: OpenAI answered 500. The next refresh retries."
    key = {"provider": "openai", "key": installation.openai.organizations[0].admin_key}
    assert local.post("/users/unlucky/settings/keys", key).status_code == 303
    assert notices(local.page("/users/unlucky/overview"))[0] == "First refresh under way"
    attempt(installation, "unlucky", "OpenAI answered 500.")
    attempt(installation, "unlucky")
    assert notices(local.page("/users/unlucky/overview"))[0] == "First refresh under way"


def test_a_late_refresh_is_marked(installation: Installation, local: Served) -> None:
    local.connect("late", installation.openai.organizations[0].admin_key)
    since = datetime.now(UTC) - timedelta(hours=30, minutes=5)
    connected(installation, "late", since)
    published(installation, "late", since)
    shown = local.page("/users/late/overview").one("p", class_="freshness")
    assert shown.fits({"class_": "late"})
    assert shown.text == "Refreshed 30 h ago · 6 h late"
    row = next(row for row in local.page("/users").all("tr") if row.text.startswith("late"))
    assert row.one("td", class_="late").text == "Refreshed 30 h ago · 6 h late"


def test_a_reconnected_user_is_not_late(installation: Installation, local: Served) -> None:
    local.connect("back", installation.openai.organizations[0].admin_key)
    since = datetime.now(UTC) - timedelta(days=40)
    connected(installation, "back", since)
    published(installation, "back", since)
    local.post("/users/back/settings/keys/remove")
    local.connect("back", installation.openai.organizations[0].admin_key)
    page = local.page("/users/back/overview")
    assert notices(page) == ["First refresh under way", SAMPLE]
    assert page.all("p", class_="freshness") == []
    assert "under way" in local.page("/users/back/settings/keys").one("dl").text
    connection = installation.accounts.connections.get("back")
    (notice,) = states.notices(connection, None, is_sample=False)
    assert (notice.kind, notice.title) == ("progress", "Refresh under way")
    published(installation, "back", datetime.now(UTC))
    assert states.notices(installation.accounts.connections.get("back"), None, is_sample=False) == []


def test_a_removed_connection_keeps_its_figures(local: Served) -> None:
    page = local.page("/users/gone/overview")
    (title,) = notices(page)
    assert title.startswith("OpenAI was removed on ")
    assert actions(page) == [("Connect again", "/users/gone/settings/keys")]
    assert page.all("p", class_="value")[0].title != "0"
    assert page.one("p", class_="freshness").text.endswith(
        " UTC. Refreshes stopped when the key was removed."
    )
    settings = local.page("/users/gone/settings/keys").one("p", class_="empty").text
    assert settings.startswith("No provider is connected. OpenAI was removed on ")


@pytest.mark.slow
def test_an_organization_without_spend_shows_its_zeros(
    start_openai: Callable[..., OpenAI], install: Callable[..., Installation]
) -> None:
    # Its first day is tomorrow.
    quiet = install(start_openai(days=0))
    quiet.connect(users=["quiet"])
    assert quiet.refresh(quiet.history(62)).failed_users == []
    with dashboard(quiet.settings) as served:
        page = served.page("/users/quiet/overview")
        assert notices(page) == []
        assert figures(page)["Total spend"] == figures(page)["Average daily cost"] == "0"
        assert [row.text for row in page.all("tr") if "gpt" in row.text] == []
        exported = served.get("/users/quiet/overview.csv")
        assert exported.headers["content-disposition"].count("quiet-costs") == 1
        assert len(exported.text.splitlines()) == 1

        quiet.accounts.connections.remove("quiet")
        removed = served.page("/users/quiet/overview")
        (title,) = notices(removed)
        assert title.startswith("OpenAI was removed on ")
        assert figures(removed) == figures(page)


def test_a_working_connection_shows_no_notice(local: Served) -> None:
    page = local.page("/users/acme/overview")
    assert notices(page) == []
    assert page.one("p", class_="freshness").text.endswith(" · today is incomplete")


@pytest.mark.parametrize(
    ("since", "text", "is_late"),
    [
        (
            timedelta(seconds=20),
            "Refreshed less than a minute ago · next within 23 h · today is incomplete",
            False,
        ),
        (timedelta(minutes=7), "Refreshed 7 min ago · next within 23 h · today is incomplete", False),
        (
            timedelta(hours=23, minutes=30),
            "Refreshed 23 h ago · next within 30 min · today is incomplete",
            False,
        ),
        (timedelta(hours=24, seconds=30), "Refreshed 24 h ago · less than a minute late", True),
        (timedelta(days=3), "Refreshed 3 days ago · 2 days late", True),
    ],
)
def test_freshness_in_words(since: timedelta, text: str, is_late: bool, installation: Installation) -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    connection = installation.accounts.connections.get("acme")
    assert isinstance(connection, Connection)
    long_ago = now - timedelta(days=9)
    connection = replace(connection, connected_at=long_ago, changed_at=long_ago, plan_since=long_ago)
    refreshed = replace(connection, last_refresh_at=now - since)
    assert freshness(refreshed, now) == Freshness(text, is_late)
    assert freshness(replace(connection, last_refresh_at=None), now) is None
    assert freshness(None, now) is None


def test_an_unreadable_snapshot_leaves_the_previous_one(
    installation: Installation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = tmp_path / "finora.duckdb"
    shutil.copyfile(installation.settings.published_database, published)
    copies = Snapshots(published)
    with copies.of("acme") as copy:
        before = copy.known_days(installation.today)
        assert before.since is not None
    published.with_name("next").write_bytes(b"not a database")
    published.with_name("next").rename(published)
    with copies.of("acme") as copy:
        assert (copy.known_days(installation.today), copy.is_sample) == (before, False)
    assert "the previous one is shown" in caplog.text
    published.unlink()
    with copies.of("acme") as copy:
        assert copy.known_days(installation.today) == before
    copies.close()


@pytest.mark.slow
def test_databases_open_at_once_spill_to_separate_folders(installation: Installation) -> None:
    copies = Snapshots(installation.settings.published_database)
    with copies.of("acme"), copies.of("missing") as sample:
        assert sample.is_sample
        folders = {opened.spill for opened in (copies._current, copies._sample) if opened}
    assert len(folders) == 2
    copies.close()
    assert not any(folder.exists() for folder in folders)


def test_a_page_does_not_wait_for_a_writer_of_the_accounts(local: Served) -> None:
    with local.accounts.database.write():
        assert local.get("/users/acme/overview", timeout=5).status_code == 200
