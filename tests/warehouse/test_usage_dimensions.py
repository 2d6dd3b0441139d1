"""Image size and source, search context and vector store: loaded, summed, and no restatement when new."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.openai_admin.endpoints import USAGE as USAGE_ENDPOINTS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.migrations import create_first_number
from finora_pipeline.warehouse.rebuild import rebuild
from finora_pipeline.warehouse.usage_columns import OPTIONAL_COLUMNS
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows

NOON = datetime(2026, 6, 20, 12, tzinfo=UTC)
DIMENSIONS = ", ".join(OPTIONAL_COLUMNS)
IMAGES = "SELECT image_size, image_source, images, requests FROM daily_usage ORDER BY ALL"
REVISIONS = "SELECT image_size, image_source, old_other, new_other FROM usage_revisions ORDER BY ALL"
STALE = "SELECT date FROM pipeline.stale_days"
SMALL, LARGE = "1024x1024", "1792x1024"


def image_row(images: int, size: str | None = None, **fields: Any) -> dict[str, Any]:
    source = "image.generation" if size else None
    row = {"model": "dall-e-3", "images": images, "num_model_requests": images, "size": size}
    return row | {"source": source} | fields


def fetch(warehouse: Warehouse, hour: int, results: Iterable[Any], endpoint: str = "images") -> None:
    """Land and load one page of a day, as fetched at this hour."""
    body = page_of(bucket(list(results)))
    run_id = f"run-{hour}"
    land(
        warehouse,
        body,
        endpoint=ENDPOINTS[endpoint],
        run_id=run_id,
        fetched_at=NOON + timedelta(hours=hour),
    )
    load(warehouse, endpoint, run_id)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def stale_days(warehouse: Warehouse, hour: int, results: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return the days that become stale by a fetch."""
    with warehouse.writing() as connection:
        connection.execute("TRUNCATE pipeline.stale_days")
    fetch(warehouse, hour, results)
    return rows(warehouse, STALE)


def test_each_dimension_has_its_column(warehouse: Warehouse):
    fetch(warehouse, 0, [image_row(2, SMALL), image_row(1, LARGE)])
    searches = [{"context_level": level, "num_requests": 3} for level in ("low", "high")]
    fetch(warehouse, 1, searches, "web_search_calls")
    fetch(warehouse, 2, [{"vector_store_id": "vs_1", "num_requests": 5}], "file_search_calls")
    fetch(warehouse, 3, [{"model": "gpt-4o", "input_tokens": 7, "output_tokens": 1}], "completions")

    found = rows(
        warehouse, f"SELECT service, {DIMENSIONS}, coalesce(images, calls) FROM named_usage ORDER BY ALL"
    )

    assert found == [
        ("completions", None, None, None, None, None),
        ("file_search_calls", None, None, None, "vs_1", 5),
        ("images", SMALL, "image.generation", None, None, 2),
        ("images", LARGE, "image.generation", None, None, 1),
        ("web_search_calls", None, None, "high", None, 3),
        ("web_search_calls", None, None, "low", None, 3),
    ]
    assert rebuild(warehouse).differences == []


def test_only_rows_of_the_same_size_are_duplicates(warehouse: Warehouse):
    fetch(warehouse, 0, [image_row(2, SMALL), image_row(3, SMALL), image_row(1, LARGE)])

    assert rows(warehouse, IMAGES) == [
        (SMALL, "image.generation", 5, 5),
        (LARGE, "image.generation", 1, 1),
    ]


@pytest.mark.parametrize("is_split_first", [False, True])
def test_the_same_usage_in_another_grouping_is_no_restatement(is_split_first: bool, warehouse: Warehouse):
    whole, split = [image_row(5)], [image_row(2, SMALL), image_row(3, LARGE)]
    first, second = (split, whole) if is_split_first else (whole, split)
    fetch(warehouse, 0, first)

    assert stale_days(warehouse, 1, second) == []

    assert rows(warehouse, REVISIONS) == []
    assert len(rows(warehouse, IMAGES)) == len(second)
    month = rows(warehouse, "SELECT month FROM pipeline.unpublished_months WHERE table_name = 'daily_usage'")
    assert month == [(DAY.replace(day=1),)]


@pytest.mark.parametrize("is_split_first", [False, True])
def test_a_restatement_in_another_grouping_is_recorded_in_sums(is_split_first: bool, warehouse: Warehouse):
    whole, split = [image_row(5)], [image_row(2, SMALL), image_row(4, LARGE)]
    fetch(warehouse, 0, split if is_split_first else whole)

    assert stale_days(warehouse, 1, whole if is_split_first else split) == [(DAY,)]

    counts = (6, 5) if is_split_first else (5, 6)
    assert rows(warehouse, REVISIONS) == [(None, None, *counts)]


def test_a_restatement_in_one_grouping_names_the_size(warehouse: Warehouse):
    fetch(warehouse, 0, [image_row(2, SMALL), image_row(3, LARGE)])
    fetch(warehouse, 1, [image_row(2, SMALL), image_row(4, LARGE)])

    assert rows(warehouse, REVISIONS) == [(LARGE, "image.generation", 3, 4)]


def test_usage_of_a_day_without_any_before_names_the_size(warehouse: Warehouse):
    fetch(warehouse, 0, [])
    fetch(warehouse, 1, [image_row(2, SMALL)])
    fetch(warehouse, 2, [])

    assert rows(warehouse, REVISIONS) == [
        (SMALL, "image.generation", 2, None),
        (SMALL, "image.generation", None, 2),
    ]


def test_other_days_and_services_keep_their_grouping(warehouse: Warehouse):
    """A page set with one day in another grouping changes only how that day is compared."""
    other = DAY + timedelta(days=1)

    def fetch_days(hour: int, first: list[Any], second: list[Any]) -> None:
        body, run_id = page_of(bucket(first), bucket(second, other)), f"days-{hour}"
        at = NOON + timedelta(hours=hour)
        land(warehouse, body, endpoint=ENDPOINTS["images"], run_id=run_id, fetched_at=at)
        load(warehouse, "images", run_id)

    fetch_days(0, [image_row(5)], [image_row(1, SMALL)])
    fetch_days(1, [image_row(5, SMALL)], [image_row(2, SMALL)])

    query = "SELECT date, image_size, old_other, new_other FROM usage_revisions"
    assert rows(warehouse, query) == [(other, SMALL, 1, 2)]


def older_warehouse(home: Path) -> Warehouse:
    """A warehouse of the first schema number with a day of images that is not split."""
    warehouse = Warehouse(home)
    warehouse.database.parent.mkdir(parents=True)
    with duckdb.connect(warehouse.database) as connection:
        create_first_number(connection)
        held = "BY NAME SELECT 'acme' AS user_id, 'openai' AS provider, $day AS date"
        images = "'images' AS service, 'dall-e-3' AS model"
        for statement in (
            f"INSERT INTO daily_usage {held}, {images}, 5 AS images, 5 AS requests, $at AS fetched_at, "
            "'old.parquet' AS raw_file, false AS is_sample",
            f"INSERT INTO pipeline.loaded_days {held}, 'images' AS endpoint, $at AS first_fetched_at, "
            "$at AS fetched_at, 'old.parquet' AS raw_file",
            f"INSERT INTO usage_revisions {held}, {images}, $at AS observed_at, 4 AS old_other, "
            "5 AS new_other",
        ):
            connection.execute(statement, {"day": DAY, "at": NOON})
    return warehouse


def test_an_older_warehouse_is_split_from_its_next_fetch_on(tmp_path: Path):
    warehouse = older_warehouse(tmp_path)

    assert rows(warehouse, IMAGES) == [(None, None, 5, 5)]
    assert rows(warehouse, "FROM pipeline.unpublished_months") == [("daily_usage", DAY.replace(day=1))]
    fetch(warehouse, 1, [image_row(2, SMALL), image_row(3, LARGE)])

    assert [images for _, _, images, _ in rows(warehouse, IMAGES)] == [2, 3]
    assert rows(warehouse, REVISIONS) == [(None, None, 4, 5)]


SPLITS = st.lists(
    st.tuples(
        st.sampled_from(["dall-e-3", "gpt-image-1"]),
        st.sampled_from([SMALL, LARGE, "256x256"]),
        st.sampled_from(["image.generation", "image.edit"]),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=8,
)


def by_model(images: Iterable[tuple[str, str, str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for model, _, _, count in images:
        sums[model] = sums.get(model, 0) + count
    return sums


@settings(max_examples=15, deadline=None)
@given(old=SPLITS, new=SPLITS)
def test_revisions_of_regrouped_days_are_the_differences_of_the_sums(
    tmp_path_factory: pytest.TempPathFactory, old: Any, new: Any
):
    warehouse = Warehouse(tmp_path_factory.mktemp("regrouped"))
    before, after = by_model(old), by_model(new)
    fetch(warehouse, 0, [image_row(count, model=model) for model, count in before.items()])
    fetch(warehouse, 1, [image_row(n, size, model=model, source=source) for model, size, source, n in new])

    found = rows(
        warehouse, "SELECT model, image_size, image_source, old_other, new_other FROM usage_revisions"
    )
    assert sorted(found) == sorted(
        (model, None, None, before.get(model), after.get(model))
        for model in before.keys() | after.keys()
        if before.get(model) != after.get(model)
    )
    for column in ("image_size", "image_source", f"({DIMENSIONS})"):
        sums = f"SELECT model, {column}, sum(images) AS images FROM daily_usage GROUP BY ALL"
        assert dict(rows(warehouse, f"SELECT model, sum(images) FROM ({sums}) GROUP BY model")) == after


def test_finer_rows_change_no_cost(warehouse: Warehouse):
    """Members, keys and models have the same costs whether usage is split by size and context or not."""
    items = ("dall-e-3, output", "web search tool calls", "gpt-4o, input")
    people = [("user-a", "key_a", 2), ("user-b", "key_b", 3)]
    for user_id in ("whole", "split"):
        costs = page_of(cost_day([cost_row('"0.100000000000000007"', item) for item in items]))
        land(warehouse, costs, user_id=user_id)
        for number, endpoint in enumerate(("images", "web_search_calls", "completions")):
            results = [
                row
                for member, key, count in people
                for row in used(endpoint, member, key, count, is_split=user_id == "split")
            ]
            run_id = f"{user_id}-{number}"
            land(
                warehouse,
                page_of(bucket(results)),
                user_id=user_id,
                endpoint=ENDPOINTS[endpoint],
                run_id=run_id,
            )
    load(warehouse)
    load(warehouse, USAGE_ENDPOINTS[0].name)

    refresh_metrics(warehouse, DAY)

    counts = dict(rows(warehouse, "SELECT user_id, count(*) FROM daily_usage GROUP BY ALL"))
    assert counts["split"] > counts["whole"]
    for table in ("daily_model_costs", "daily_member_costs", "daily_key_costs"):
        whole, split = (
            rows(warehouse, f"SELECT * EXCLUDE (user_id) FROM {table} WHERE user_id = '{one}' ORDER BY ALL")
            for one in ("whole", "split")
        )
        assert whole == split
        assert len(whole) > 2


def used(endpoint: str, member: str, key: str, count: int, is_split: bool) -> list[dict[str, Any]]:
    """Return a member's usage in one row, or in two by the endpoint's optional dimension."""
    row = {"project_id": "proj_a", "user_id": member, "api_key_id": key}
    match endpoint:
        case "images":
            row |= {"model": "dall-e-3"}
            measure, dimension, values = "images", "size", (SMALL, LARGE)
        case "web_search_calls":
            row |= {"model": "gpt-4o"}
            measure, dimension, values = "num_requests", "context_level", ("low", "high")
        case _:
            return [row | {"model": "gpt-4o", "input_tokens": count, "output_tokens": 0}]
    if not is_split:
        return [row | {measure: count}]
    return [row | {dimension: values[0], measure: 1}, row | {dimension: values[1], measure: count - 1}]
