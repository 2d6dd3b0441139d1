"""The server that plays the cases keeps their spelling and answers as OpenAI does."""

import json
from datetime import UTC, datetime

import pytest

from tests.cases.organizations import INPUT, OUTPUT, changed, usual
from tests.cases.server import DAY, Organization, elements, members

COSTS = "/v1/organization/costs"
TODAY = int(datetime.now(UTC).timestamp()) // DAY * DAY
ALL_WEEK = f"start_time={TODAY - 6 * DAY}&end_time={TODAY + DAY}&limit=7"
GROUPED = f"{ALL_WEEK}&group_by[]=project_id&group_by[]=line_item"


def answer(text: str, path: str, query: str = "") -> str:
    status, body, _ = Organization(text).answer(path, query)
    assert status == 200, body
    return body


@pytest.mark.parametrize(
    "spelled",
    [
        '"value":1.250',
        '"value":"1e-2"',
        '"value":-0.0',
        '"value":12345678901234567890.123456789',
        r'"value":"1","note":"\ud83d\u0000"',
        '"value":"1","value":"2"',
    ],
)
def test_numbers_and_escapes_keep_their_spelling(spelled: str):
    row = changed(INPUT, '"value":"1.250000000000000000000000000000000"', spelled)
    assert spelled in answer(usual(costs=row), COSTS, GROUPED)


def test_a_day_has_a_bucket_with_and_without_rows_and_today_is_the_last():
    page = json.loads(
        answer(usual(), COSTS, f"start_time={TODAY - 6 * DAY}&end_time={TODAY + 5 * DAY}&limit=31")
    )
    assert [bucket["start_time"] for bucket in page["data"]] == [TODAY - n * DAY for n in range(6, -1, -1)]
    assert [len(bucket["results"]) for bucket in page["data"]] == [0, 0, 0, 0, 0, 1, 0]
    assert (page["has_more"], page["next_page"]) == (False, None)


def test_duplicate_rows_are_added_up():
    (row,) = json.loads(answer(usual(), COSTS, ALL_WEEK))["data"][-2]["results"]
    assert row["amount"] == {"value": "2.0000000000000000000000000000000000", "currency": "usd"}
    assert (row["line_item"], row["project_id"], row["project_name"]) == (None, None, None)
    assert (row["quantity"], row["quantity_unit"]) == (None, None)


def test_pages_follow_each_other():
    query = f"start_time={TODAY - 6 * DAY}&limit=3"
    starts, token = [], ""
    while True:
        page = json.loads(answer(usual(), COSTS, query + token))
        starts += [bucket["start_time"] for bucket in page["data"]]
        if not page["has_more"]:
            break
        token = f"&page={page['next_page']}"
    assert starts == [TODAY - n * DAY for n in range(6, -1, -1)]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (COSTS, f"{ALL_WEEK}&group_by[]=user_id"),
        (COSTS, f"{ALL_WEEK}&group_by[]=model"),
        (COSTS, f"start_time={TODAY}&limit=181"),
        (COSTS, "limit=1"),
        ("/v1/organization/usage/images", f"start_time={TODAY}&limit=32"),
        ("/v1/organization/usage/vector_stores", f"{ALL_WEEK}&group_by=user_id"),
    ],
)
def test_what_openai_refuses_is_refused(path: str, query: str):
    assert Organization(usual()).answer(path, query)[0] == 400


def test_archived_projects_are_listed_on_demand():
    names = [
        [
            project["name"]
            for project in json.loads(answer(usual(), "/v1/organization/projects", query))["data"]
        ]
        for query in ("", "include_archived=true", "include_archived=true&limit=1&after=proj_case0001")
    ]
    assert names == [["Alpha"], ["Alpha", "Old"], ["Old"]]


def test_the_first_fault_that_strikes_answers():
    faults = [{"path": "costs", "after": 1, "times": 1, "status": 403, "body": "no"}, {"path": "users"}]
    organization = Organization(usual(faults=faults))
    seen = [organization.answer(COSTS, ALL_WEEK)[0] for _ in range(4)]
    assert seen == [200, 403, 200, 200]
    assert organization.answer("/v1/organization/users", "")[0] == 500
    assert organization.asked("costs") == 4


def test_members_and_elements_keep_their_spelling():
    text = f'{{ "a" : 1.0 ,"b":[ {INPUT}, {OUTPUT} ],"a":"\\u00e9" }}'
    assert [name for name, _ in members(text)] == ["a", "b", "a"]
    assert elements(members(text)[1][1]) == [INPUT, OUTPUT]
