"""Keys join facts with projects, members, API keys and models by one column, whatever users share."""

from collections.abc import Callable

import duckdb
import pytest

from finora_pipeline.warehouse.migrations import MIGRATIONS, create_first_number
from finora_pipeline.warehouse.schema import create_or_migrate
from finora_pipeline.warehouse.tables import ID_COLUMN, NAMED
from tests.conftest import Installation, now_in_the_middle_of_today

# Per key the table that it identifies, and what facts call the id; the table has the last of these names.
KEYS = {
    "project_key": ("projects", ("project_id",)),
    "member_key": ("members", ("member_id",)),
    "api_key_key": ("api_keys", ("api_key_id",)),
    "model_key": ("models", ("cost_model", "model")),
}


def columns(installation: Installation, table: str) -> set[str]:
    found = installation.sql(
        "SELECT column_name FROM duckdb_columns() WHERE database_name = 'finora' AND table_name = ?", table
    )
    return {name for (name,) in found}


def test_a_join_by_one_key_neither_loses_nor_multiplies_rows(start_openai, install):
    # Both users have one organization, so every id twice; a key was deleted before the first list.
    gone = {"deleted_keys": 1, "gone_since": now_in_the_middle_of_today().date(), "service_accounts": 1}
    installation = install(start_openai(days=4, **gone))
    for user_id in ("acme", "globex"):
        installation.connect(plan="trial", users=[user_id])
    assert installation.refresh().failed_users == []

    unlisted = set()
    joined = [(view, key) for view in NAMED for key in KEYS if key in columns(installation, view)]
    assert len(joined) == 2 + 4 + 4 + 3 + 3
    for view, key in joined:
        other, ids = KEYS[key]
        id_ = next(name for name in ids if name in columns(installation, view))
        ((rows, matched, same, with_id, with_key),) = installation.sql(
            f"SELECT count(*), count(other.user_id), count(*) FILTER (other.user_id = fact.user_id "
            f"AND other.{ids[-1]} = fact.{id_}), count(fact.{id_}), count({key}) "
            f"FROM {view} AS fact LEFT JOIN {other} AS other USING ({key})"
        )
        assert installation.sql(f"SELECT count(*) FROM {NAMED[view]}") == [(rows,)], (view, key)
        assert matched == same > 0, (view, key)
        assert with_id == with_key
        if matched < with_id:
            unlisted.add((view, key))
    # The deleted key; and services without a model that nothing is charged for.
    keys = {(view, key) for view, key in joined if key == "api_key_key"}
    assert unlisted == {*keys, ("named_usage", "model_key")}


def test_keys_are_unique_across_users(start_openai, install):
    installation = install(start_openai(days=3))
    for user_id in ("acme", "globex"):
        installation.connect(plan="trial", users=[user_id])
    installation.refresh()
    for key, (table, ids) in KEYS.items():
        found = installation.sql(
            f"SELECT count(*), count(DISTINCT {key}), count(DISTINCT {ids[-1]}) FROM {table}"
        )
        ((rows, distinct, ids_alone),) = found
        assert rows == distinct == 2 * ids_alone > 0


def test_an_upgrade_fills_the_keys_of_known_rows(memory: duckdb.DuckDBPyConnection):
    create_first_number(memory)
    for migration in MIGRATIONS:
        if migration.number < 9:
            migration.apply(memory)
    for table, id_ in ID_COLUMN.items():
        memory.execute(
            f"INSERT INTO {table} BY NAME SELECT unnest(['acme', 'globex']) AS user_id, "
            f"'openai' AS provider, 'id_1' AS {id_}, true AS is_listed, now() AS first_seen_at, "
            "now() AS last_seen_at"
        )
    next(one for one in MIGRATIONS if one.number == 9).apply(memory)
    for (key, _), table in zip(KEYS.items(), ID_COLUMN, strict=False):
        assert memory.execute(f"SELECT {key} FROM {table} ORDER BY ALL").fetchall() == [
            ("acme/id_1",),
            ("globex/id_1",),
        ]


def test_a_service_account_has_no_email_address(install_loaded: Callable[..., Installation]):
    installation = install_loaded("trial", days=4, service_accounts=1)
    emails = installation.sql(
        "SELECT DISTINCT principal_type, member_email IS NULL FROM named_attributed_costs "
        "WHERE member_id IS NOT NULL ORDER BY ALL"
    )
    assert emails == [("member", False), ("service_account", True)]


@pytest.fixture
def named(memory: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Charges of two organizations, a renamed project and one that no list has had."""
    create_or_migrate(memory)
    charges = [
        ("acme", "2026-11-01", "org-1", None, "proj_a", "Before"),
        ("acme", "2026-11-02", "org-1", "Old name", "proj_a", "Before"),
        ("acme", "2026-11-03", "org-1", "New name", "proj_b", "Deleted"),
        ("acme", "2026-11-04", "org-2", None, "proj_c", None),
        ("acme", "2026-11-05", None, None, None, None),
        ("globex", "2026-11-06", "org-1", None, "proj_a", "Globex"),
    ]
    memory.executemany(
        "INSERT INTO daily_costs (user_id, provider, date, organization_id, organization_name, project_id, "
        "project_name, cost_model, is_long_context, is_parsed, fetched_at, raw_file, is_sample) "
        "VALUES ($1, 'openai', $2, $3, $4, $5, $6, 'gpt-5', false, true, now(), '', false)",
        charges,
    )
    memory.execute(
        "INSERT INTO projects VALUES ('acme', 'openai', 'proj_a', 'After', 'active', NULL, NULL, true, "
        "now(), now(), 'acme/proj_a')"
    )
    return memory


def test_named_charges_have_the_newest_known_names(named: duckdb.DuckDBPyConnection):
    found = named.execute(
        "SELECT organization_name, project_name, project_key, model_key FROM named_costs ORDER BY date"
    ).fetchall()
    assert found == [
        ("New name", "After", "acme/proj_a", "acme/gpt-5"),
        ("Old name", "After", "acme/proj_a", "acme/gpt-5"),
        ("New name", "Deleted", "acme/proj_b", "acme/gpt-5"),
        (None, "unknown", "acme/proj_c", "acme/gpt-5"),
        ("New name", None, None, "acme/gpt-5"),
        (None, "Globex", "globex/proj_a", "globex/gpt-5"),
    ]
