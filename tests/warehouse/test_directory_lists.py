"""Directory lists, each with its own outcome, loaded in any order and parts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finora_pipeline.openai_admin.endpoints import API_KEYS, MEMBERS, PROJECTS, SERVICE_ACCOUNTS, Listing
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import load_pending
from tests.warehouse.landing import land_lists, rows

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=1)
Row = dict[str, Any]


def project(id: str, status: str = "active") -> Row:
    return {"id": id, "name": id.title(), "status": status, "created_at": 1_700_000_000}


def account(id: str, name: str | None = "CI runner") -> Row:
    return {"id": id, "name": name, "role": "member", "created_at": 1_700_000_000}


def key(id: str, owner: Row) -> Row:
    kind = "service_account" if "role" in owner else "user"
    return {"id": id, "name": id, "created_at": 1_700_000_000, "owner": {"type": kind, kind: owner}}


ONE = {"id": "user-1", "name": "One", "email": "one@case.example", "role": "owner", "added_at": 1}


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def read(warehouse: Warehouse, lists: dict[tuple[Listing, str], list[Row]], at: datetime = NOON) -> None:
    """Land and load one fetch of the directory: rows by list and project."""
    land_lists(warehouse, lists, at)
    load_pending(warehouse, ["directory"], "run-1")


def members(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    return rows(warehouse, "SELECT member_id, name, email, is_listed FROM members ORDER BY member_id")


def test_a_service_account_is_a_member(warehouse: Warehouse):
    lists = {(PROJECTS, ""): [project("alpha")], (MEMBERS, ""): [ONE]}
    read(warehouse, lists | {(SERVICE_ACCOUNTS, "alpha"): [account("user-svc")]})
    assert members(warehouse) == [
        ("user-1", "One", "one@case.example", True),
        ("user-svc", "CI runner", None, True),
    ]
    found = rows(warehouse, "SELECT role, added_at FROM members WHERE member_id = 'user-svc'")
    assert found == [("member", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))]


def test_a_service_account_is_known_by_its_key_without_a_list(warehouse: Warehouse):
    lists = {(PROJECTS, ""): [project("alpha")], (MEMBERS, ""): [ONE]}
    read(warehouse, lists | {(API_KEYS, "alpha"): [key("ci", account("user-svc")), key("prod", ONE)]})
    assert members(warehouse)[1:] == [("user-svc", "CI runner", None, True)]
    # A list with the account but without its name keeps the name.
    more = {(SERVICE_ACCOUNTS, "alpha"): [account("user-svc", None)]}
    read(warehouse, lists | more | {(API_KEYS, "alpha"): [key("ci", account("user-svc"))]}, LATER)
    assert members(warehouse)[1:] == [("user-svc", "CI runner", None, True)]


def test_a_member_name_comes_from_any_list_that_has_it(warehouse: Warehouse):
    nested = {"id": "user-2", "role": "reader", "user": {"name": "Two", "email": "two@case.example"}}
    read(warehouse, {(MEMBERS, ""): [ONE, nested]})
    assert members(warehouse)[1] == ("user-2", "Two", "two@case.example", True)


def test_a_service_account_is_gone_only_after_a_complete_listing(warehouse: Warehouse):
    projects = [project("alpha"), project("beta"), project("old", "archived")]
    lists = {(PROJECTS, ""): projects, (MEMBERS, ""): [ONE]}
    alpha = (SERVICE_ACCOUNTS, "alpha")
    beta = (SERVICE_ACCOUNTS, "beta")
    read(warehouse, lists | {alpha: [account("svc-a")], beta: [account("svc-b")]})
    # The list of project beta failed.
    read(warehouse, lists | {alpha: []}, LATER)
    assert [(id, listed) for id, _, _, listed in members(warehouse)] == [
        ("svc-a", True),
        ("svc-b", True),
        ("user-1", True),
    ]
    read(warehouse, lists | {alpha: [], beta: [account("svc-b")]}, LATER + timedelta(days=1))
    assert [(id, listed) for id, _, _, listed in members(warehouse)] == [
        ("svc-a", False),
        ("svc-b", True),
        ("user-1", True),
    ]


def test_a_failed_list_leaves_its_keys_unchanged(warehouse: Warehouse):
    alpha, beta = (API_KEYS, "alpha"), (API_KEYS, "beta")
    read(warehouse, {alpha: [key("a-1", ONE), key("a-2", ONE)], beta: [key("b-1", ONE)]})
    read(warehouse, {alpha: [key("a-2", ONE)]}, LATER)
    query = "SELECT api_key_id, is_listed FROM api_keys ORDER BY ALL"
    assert rows(warehouse, query) == [("a-1", False), ("a-2", True), ("b-1", True)]
    read(warehouse, {beta: []}, LATER + timedelta(days=1))
    assert rows(warehouse, query) == [("a-1", False), ("a-2", True), ("b-1", False)]


def test_lists_loaded_in_any_order_end_at_the_newest_state(warehouse: Warehouse):
    gone = {"id": "user-0", "name": "Zero", "email": "zero@case.example", "role": "reader", "added_at": 1}
    read(warehouse, {(MEMBERS, ""): [ONE | {"name": "Uno"}]}, LATER)
    read(warehouse, {(MEMBERS, ""): [ONE, gone]}, NOON)
    assert members(warehouse) == [
        ("user-0", "Zero", "zero@case.example", False),
        ("user-1", "Uno", "one@case.example", True),
    ]
    assert rows(warehouse, "SELECT min(first_seen_at) FROM members") == [(NOON,)]
