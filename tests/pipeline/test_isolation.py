"""One organization's failure never affects another, and its message gives advice."""

import json

from click.testing import CliRunner

from finora_pipeline.cli import main, runs
from finora_pipeline.openai_simulator import Fault, FaultKind, KeyState

BAD = {
    3: ("invalid_key", "deleted or revoked"),
    8: ("insufficient_permissions", "project key"),
    12: ("timed_out", "did not answer within"),
    17: ("unreadable_response", "not a page"),
}


def test_four_failing_users_of_twenty_leave_sixteen_exact(start_openai, install):
    openai = start_openai(organizations=20, days=5, services=False, keys_per_project=1)
    installation = install(openai)
    user_ids = installation.connect(plan="trial")
    openai.simulator.set_key_state(openai.organizations[3].admin_key, KeyState.REVOKED)
    openai.simulator.set_key_state(openai.organizations[8].admin_key, KeyState.RESTRICTED)
    openai.simulator.add_fault(openai.organizations[12], Fault(FaultKind.HANG))
    openai.simulator.add_fault(openai.organizations[17], Fault(FaultKind.HTML))

    result = installation.refresh()

    assert result.succeeded
    failed = {row.user_id: row for row in result.failed_users}
    assert set(failed) == {user_ids[number] for number in BAD}
    for number, user_id in enumerate(user_ids):
        if number in BAD:
            reason, words = BAD[number]
            assert failed[user_id].reason == reason
            assert words in failed[user_id].message
            assert installation.costs(user_id) == {}
        else:
            installation.assert_exact(user_id, number, installation.history(7))

    status = CliRunner().invoke(main, ["status", "--json"], catch_exceptions=False)
    by_user = {row["user_id"]: row for row in json.loads(status.stdout)}
    for number, (_, words) in BAD.items():
        row = by_user[user_ids[number]]
        assert words in (row["status_reason"] or row["last_failure"])
    # The first two need a person; the others are retried at the next refresh.
    states = [by_user[user_ids[number]]["status"] for number in BAD]
    assert states == ["needs attention", "needs attention", "active", "active"]
    assert sum(row["last_failure"] is None for row in by_user.values()) == 16


def test_a_refused_key_is_not_retried_until_it_works_again(start_openai, install):
    openai = start_openai(days=4)
    installation = install(openai)
    installation.connect(plan="trial")
    key = openai.organizations[0].admin_key
    openai.simulator.set_key_state(key, KeyState.DEMOTED)
    installation.refresh()
    assert installation.accounts.connections.get("user-0").status == "needs attention"
    asked = openai.simulator.requests.total()
    unnamed = installation.refresh()
    assert unnamed.refreshes == []
    assert openai.simulator.requests.total() == asked
    openai.simulator.set_key_state(key, KeyState.ACTIVE)
    # Named, it is fetched at once.
    installation.refresh(users=["user-0"])
    assert installation.accounts.connections.get("user-0").status == "active"
    installation.assert_exact("user-0", 0, installation.history(7))


def test_a_failing_fetch_keeps_the_days_loaded_before(start_openai, install):
    openai = start_openai(days=4)
    installation = install(openai)
    installation.connect(plan="trial")
    installation.refresh()
    before = installation.costs("user-0")
    for kind in (FaultKind.SERVER_ERROR, FaultKind.NULL_RESULTS, FaultKind.CUT, FaultKind.RESET):
        openai.simulator.clear_faults()
        openai.simulator.add_fault(openai.organizations[0], Fault(kind, endpoint="costs"))
        result = installation.refresh()
        assert [row.outcome for row in result.refreshes] == ["failed"]
        assert installation.costs("user-0") == before


def test_a_user_removed_before_the_run_fails_no_other(start_openai, install):
    installation = install(start_openai(organizations=2, days=4))
    installation.connect(plan="trial")
    installation.accounts.connections.remove("user-0")
    result = installation.refresh(users=["user-0", "user-1"])
    assert result.succeeded, result.errors
    assert [row.user_id for row in result.refreshes] == ["user-1"]
    installation.assert_exact("user-1", 1, installation.history(7))
    (again,) = runs.load_history(
        installation.settings, ["user-0", "user-1"], openai_admin=installation.openai_admin
    )
    assert again.succeeded, again.errors
    assert [row.user_id for row in again.refreshes] == ["user-1"]
