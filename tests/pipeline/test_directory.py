"""Names of projects, members and API keys, also of those OpenAI no longer lists."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connection_parts
from finora_pipeline.openai_simulator import Fault, FaultKind
from tests.conftest import Installation, now_in_the_middle_of_today


def names(installation: Installation, table: str) -> list[tuple[object, ...]]:
    return installation.sql(f"SELECT name, is_listed FROM {table} WHERE user_id = 'user-0' ORDER BY name")


def read_again(installation: Installation) -> None:
    """Fetch as a day later, when the directory is due again."""
    connection = installation.accounts.connections.get("user-0")
    assert connection is not None
    with installation.accounts.database.write() as database:
        database.exec_driver_sql("UPDATE connections SET directory_read_at = NULL")
    assert installation.refresh().failed_users == []


def test_names_stay_after_their_objects_are_deleted(start_openai, install):
    now = now_in_the_middle_of_today()
    gone = {"archived_projects": 1, "vanished_members": 1, "deleted_keys": 1, "service_accounts": 1}
    openai = start_openai(days=20, gone_since=now.date() - timedelta(days=2), **gone)
    openai.simulator.frozen_now = now - timedelta(days=5)
    installation = install(openai)
    installation.connect(plan="growth")
    assert installation.refresh().failed_users == []
    organization = openai.organizations[0]
    # A service account counts as a member: here it is known as the owner of a key.
    owners = {m.name for m in organization.members} | {"Service account 1"}
    assert {name for name, _ in names(installation, "members")} == owners
    assert {
        listed for table in ("projects", "members", "api_keys") for _, listed in names(installation, table)
    } == {True}

    openai.simulator.frozen_now = now
    read_again(installation)
    gone_members = [name for name, listed in names(installation, "members") if not listed]
    assert gone_members == [organization.members[-1].name]
    assert len([name for name, listed in names(installation, "api_keys") if not listed]) == 1
    archived = installation.sql("SELECT name, is_listed FROM projects WHERE status = 'archived'")
    assert archived == [(organization.projects[-1].name, True)]
    assert installation.sql("SELECT DISTINCT owner_type FROM api_keys ORDER BY ALL") == [
        ("service_account",),
        ("user",),
    ]
    # Every id of a fact has a name, also of deleted objects.
    for view, columns in (
        ("named_usage", ("project_name", "member_name", "member_email", "api_key_name")),
        ("named_member_costs", ("project_name", "member_name")),
        ("named_key_costs", ("project_name", "api_key_name", "owner_name")),
    ):
        unknowns = ", ".join(f"count(*) FILTER ({column} = 'unknown')" for column in columns)
        assert installation.sql(f"SELECT count(*) > 0, {unknowns} FROM {view}") == [
            (True, *[0] * len(columns))
        ]
    members = dict(installation.sql("SELECT DISTINCT member_id, member_name FROM named_member_costs"))
    assert members[organization.members[-1].id] == organization.members[-1].name


def test_names_openai_never_listed_are_unknown(start_openai, install):
    openai = start_openai(days=10, deleted_keys=1, gone_since=now_in_the_middle_of_today().date())
    installation = install(openai)
    installation.connect(plan="growth")
    installation.refresh()
    unknown = installation.sql("SELECT DISTINCT api_key_name FROM named_usage WHERE api_key_name = 'unknown'")
    assert unknown == [("unknown",)]


def test_the_directory_is_fetched_daily_and_never_fails_a_refresh(start_openai, install):
    openai = start_openai(days=4)
    installation = install(openai)
    installation.connect(plan="trial")
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SERVER_ERROR, endpoint="users"))
    assert installation.refresh().failed_users == []
    assert names(installation, "members") == []
    (failure,) = installation.accounts.refreshes.part_failures(["user-0"])["user-0"]
    assert failure.message.startswith("The organization's members cannot be listed: ")
    openai.simulator.clear_faults()
    with installation.accounts.database.write() as database:
        database.execute(update(connection_parts).values(retry_at=failure.since))
    for times in (1, 0):
        openai.simulator.requests.clear()
        assert installation.refresh().failed_users == []
        assert openai.simulator.requests["users"] == times
    assert len(names(installation, "members")) == len(openai.organizations[0].members)


@pytest.mark.parametrize("kind", [FaultKind.NOT_UTF8, FaultKind.NANOSECONDS])
def test_an_odd_directory_list_fails_no_refresh(start_openai, install, kind):
    openai = start_openai(organizations=2, days=4)
    installation = install(openai)
    installation.connect(plan="trial")
    openai.simulator.add_fault(openai.organizations[1], Fault(kind, endpoint="users"))
    openai.simulator.add_fault(openai.organizations[1], Fault(kind, endpoint="projects"))
    openai.simulator.add_fault(openai.organizations[1], Fault(kind, endpoint="api_keys"))
    assert installation.refresh().failed_users == []
    assert len(names(installation, "members")) == len(openai.organizations[0].members)
    assert installation.sql("SELECT count(DISTINCT user_id) FROM daily_costs") == [(2,)]
    # An invalid time does not drop the names.
    has_names = kind is FaultKind.NANOSECONDS
    for table, moment in (("projects", "created_at"), ("members", "added_at"), ("api_keys", "created_at")):
        found = installation.sql(
            f"SELECT count(*) > 0, count({moment}) FROM {table} WHERE user_id = 'user-1'"
        )
        assert found == [(has_names, 0)]
