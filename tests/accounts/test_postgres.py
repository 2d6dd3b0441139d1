"""Accounts in Postgres: concurrent processes, a restarting server, its time zone.

test_connections.py runs the rest on SQLite and Postgres alike.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import pytest
from sqlalchemy import Engine, event

from finora_pipeline.accounts.database import AccountsDatabase, open_database
from finora_pipeline.accounts.model import (
    AccountsError,
    CompleteRefresh,
    Connection,
    Organization,
    Refresh,
    Status,
)
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.accounts.vault import load_vault
from finora_pipeline.alerts.conditions import Condition
from finora_pipeline.alerts.store import Alert, mark_notified, open_alerts, sync_alerts
from finora_pipeline.openai_admin.keys import AdminKey
from tests.conftest import Installation, OpenAI
from tests.postgres_server import PostgresServer
from tests.small_openai import small_openai

T = TypeVar("T")
KEYS = [AdminKey(f"sk-admin-{letter * 40}") for letter in "ab"]
ACME = Organization("org-acme", "Acme", frozenset({"proj_1"}))
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAI]:
    with small_openai(organizations=1) as openai:
        yield openai


@pytest.fixture
def home(postgres: PostgresServer, openai: OpenAI, install: Callable[..., Installation]) -> Installation:
    """An installation without users, its accounts in Postgres."""
    return install(openai, postgres.new_url())


def saved(accounts: Accounts, key: AdminKey = KEYS[0], known: Connection | None = None) -> Connection:
    return accounts.connections.save("acme", key, ACME, address="http://127.0.0.1/v1", known=known)


def stored(home: Installation) -> Connection:
    connection = home.accounts.connections.get("acme")
    assert connection is not None
    return connection


def a_read(of: Connection, reason: str | None = None) -> Refresh:
    day = of.changed_at.date()
    return Refresh(
        user_id=of.user_id,
        window_start=day - timedelta(days=6),
        window_end=day + timedelta(days=1),
        started_at=of.changed_at + timedelta(seconds=1),
        finished_at=of.changed_at + timedelta(seconds=2),
        pages=0 if reason else 5,
        reason=reason,
        message=f"OpenAI said {reason}." if reason else None,
        permanent=reason is not None,
    )


def as_the_first_commits(
    postgres: PostgresServer, first: Callable[[], object], second: Callable[[], T]
) -> Future[T]:
    """Begin the second right before the first commits; return how the second ended.

    The first commits once the second waits for it or is done.
    """
    to_begin, begun = [second], []
    with ThreadPoolExecutor(1) as another_process:

        def begin_second(_: object) -> None:
            if to_begin:
                begun.append(another_process.submit(to_begin.pop()))
                while not begun[0].done() and not postgres.is_session_waiting():
                    pass

        event.listen(Engine, "commit", begin_second)
        try:
            first()
        finally:
            event.remove(Engine, "commit", begin_second)
    return begun[0]


# Concurrent processes


@pytest.mark.parametrize("is_connected", [False, True])
def test_the_second_of_two_concurrent_saves_of_a_user_is_refused(home, postgres, is_connected):
    known = saved(home.accounts) if is_connected else None
    another = accounts_of(home.settings)
    second = as_the_first_commits(
        postgres,
        lambda: saved(home.accounts, KEYS[0], known),
        lambda: saved(another, KEYS[1], known),
    )
    with pytest.raises(AccountsError, match="The connection of acme was changed at the same time"):
        second.result()
    assert stored(home).key_hint == KEYS[0].hint
    assert home.accounts.connections.key_ring(["acme"]).key_of("acme").reveal() == KEYS[0].reveal()


def test_a_stricter_default_isolation_changes_nothing(home, postgres):
    url = postgres.new_url("default_transaction_isolation=serializable")
    one, another = (
        Accounts(AccountsDatabase(open_database(url)), load_vault("", home.settings.master_key_file))
        for _ in "12"
    )
    known = saved(one)
    second = as_the_first_commits(
        postgres, lambda: saved(one, KEYS[0], known), lambda: saved(another, KEYS[1], known)
    )
    with pytest.raises(AccountsError, match="was changed at the same time"):
        second.result()


def test_a_key_saved_while_a_fetch_is_recorded_ignores_its_outcome(home, postgres):
    known = saved(home.accounts)
    another = accounts_of(home.settings)
    refused = replace(a_read(known, "invalid_key"), started_at=known.changed_at)
    as_the_first_commits(
        postgres,
        lambda: saved(home.accounts, KEYS[1], known),
        lambda: another.refreshes.record("run-1", [refused]),
    ).result()
    assert (stored(home).key_version, stored(home).status) == (2, Status.ACTIVE)


def test_two_fetches_recorded_at_once_both_count(home, postgres):
    known = saved(home.accounts)
    another = accounts_of(home.settings)
    whole = a_read(known)
    later = replace(whole, window_start=whole.window_end, window_end=whole.window_end + timedelta(days=2))
    as_the_first_commits(
        postgres,
        lambda: home.accounts.refreshes.record("run-1", [whole]),
        lambda: another.refreshes.record("run-2", [later]),
    ).result()
    assert (stored(home).history_from, stored(home).read_until) == (whole.window_start, later.window_end)


def test_an_alert_found_twice_at_once_is_one_alert(home, postgres):
    condition = Condition("attention/acme", "The OpenAI connection of acme needs attention.")
    another = accounts_of(home.settings)
    alarm = Alert(condition.key, condition.message, NOON, None)
    second = as_the_first_commits(
        postgres,
        lambda: sync_alerts(home.accounts.database, [condition], NOON),
        lambda: sync_alerts(another.database, [condition], NOON + timedelta(minutes=1)),
    )
    assert second.result() == [alarm]
    assert open_alerts(another.database) == [alarm]


def test_concurrent_first_starts_create_one_set_of_tables(postgres):
    url = postgres.new_url()
    engines: list[Engine] = []

    def open_it() -> None:
        engines.append(open_database(url))

    as_the_first_commits(postgres, open_it, open_it).result()
    for engine in engines:
        assert open_alerts(AccountsDatabase(engine)) == []


# The server


def test_accounts_work_after_the_server_ended_all_sessions(home, postgres):
    known = saved(home.accounts)
    postgres.drop_connections()
    assert stored(home) == known
    postgres.drop_connections()
    assert saved(home.accounts, KEYS[1], known).key_version == 2


def test_the_key_is_in_no_file_of_the_server(home, postgres):
    connection = saved(home.accounts)
    home.accounts.refreshes.record("run-1", [a_read(connection, "invalid_key")])
    secret = KEYS[0].reveal().encode()
    assert postgres.files_with(KEYS[0].hint.encode())
    assert postgres.files_with(secret) == []


# Times


def test_times_are_utc_in_any_zone_of_the_server(home, postgres):
    assert postgres.sql("SHOW timezone") == [("America/New_York",)]
    before = datetime.now(UTC)
    connection = saved(home.accounts)
    assert before <= connection.changed_at <= datetime.now(UTC)
    assert connection.changed_at.utcoffset() == timedelta(0)
    assert accounts_of(home.settings).connections.get("acme") == connection


def test_an_hour_skipped_in_the_servers_zone_is_stored(home):
    """New York went from 2:00 to 3:00 on that day."""
    saved(home.accounts)
    moments = [datetime(2026, 3, 8, 2, 30, tzinfo=UTC), datetime(2026, 3, 8, 3, 5, tzinfo=UTC)]
    for number, moment in enumerate(moments):
        read = Refresh("acme", date(2026, 3, 1), date(2026, 3, 9), moment, moment, 1)
        home.accounts.refreshes.record(f"run-{number}", [read])
        home.accounts.refreshes.mark_published(home.accounts.refreshes.unpublished(), moment)
        assert stored(home).last_refresh_at == moment


# Other behaviour


def test_purge_deletes_all_of_a_user(home):
    connection = saved(home.accounts)
    home.accounts.refreshes.record("run-1", [a_read(connection)])
    sync_alerts(home.accounts.database, [Condition("attention/acme", "acme needs attention")], NOON)
    deleted = {table: rows for table, rows in home.accounts.purge("acme").items() if rows}
    tables = ("credentials", "connections", "refreshes", "audit", "users", "alarms")
    # The key was saved and used.
    assert deleted == dict.fromkeys(tables, 1) | {"audit": 2}
    assert home.accounts.users.ids() == []
    assert [entry.action for entry in home.accounts.audit.of_user("acme")] == ["purge"]


def test_an_alert_notifies_when_it_opens_and_when_it_is_over(home):
    database = home.accounts.database
    condition = Condition("too old/growth", "Data of the growth plan is older than promised.")
    (opened,) = sync_alerts(database, [condition], NOON)
    mark_notified(database, [opened], NOON)
    assert sync_alerts(database, [condition], NOON) == []
    (over,) = sync_alerts(database, [], NOON + timedelta(hours=1))
    assert (over.opened_at, over.resolved_at) == (NOON, NOON + timedelta(hours=1))
    mark_notified(database, [over], NOON + timedelta(hours=2))
    assert sync_alerts(database, [], NOON + timedelta(hours=3)) == []


def test_outcomes_are_counted(home):
    connection = saved(home.accounts)
    home.accounts.refreshes.record("run-1", [a_read(connection)])
    home.accounts.refreshes.record("run-2", [a_read(connection, "unreachable")])
    assert home.accounts.refreshes.outcomes_since(connection.changed_at) == {
        "complete": (1, 5),
        "unreachable": (1, 0),
    }
    assert home.accounts.refreshes.unpublished() == [
        CompleteRefresh(
            "run-1", "acme", connection.changed_at + timedelta(seconds=1), a_read(connection).window_end
        )
    ]


def test_a_name_postgres_cannot_compare_matches_no_login(home):
    people = home.accounts.logins
    assert people.get("\0") is None
    assert people.by_password("ada\0", "a long password") is None
