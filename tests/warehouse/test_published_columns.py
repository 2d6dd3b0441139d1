"""What analysts' queries rely on changes only together with its version and its changelog."""

import re
from pathlib import Path

from finora_pipeline.warehouse.tables import SCHEMA_VERSION
from tests.warehouse.published_columns import page

KEPT = Path(__file__).with_name("published_columns.txt")
CHANGELOG = Path(__file__).parents[2] / "docs" / "schema.md"


def test_the_published_columns_are_those_of_their_version():
    assert KEPT.read_text() == page(), (
        "Published tables or views have other columns. Raise SCHEMA_VERSION in warehouse/tables.py as "
        "docs/schema.md says, describe the change there, then run "
        "python -m tests.warehouse.published_columns > tests/warehouse/published_columns.txt"
    )


def test_the_changelog_of_the_schema_begins_with_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)$", CHANGELOG.read_text(), re.MULTILINE)
    assert versions[0] == SCHEMA_VERSION
    assert versions == sorted(versions, key=lambda one: [*map(int, one.split("."))], reverse=True)
