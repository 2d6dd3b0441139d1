"""The columns of all published tables and views, for test_published_columns.py.

python -m tests.warehouse.published_columns > tests/warehouse/published_columns.txt
"""

from finora_pipeline.warehouse.database import described_tables
from finora_pipeline.warehouse.tables import SCHEMA_VERSION


def page() -> str:
    """Return the version, then a line per column, by table in its order."""
    lines = [f"schema_version {SCHEMA_VERSION}"]
    for table, description in sorted(described_tables().items()):
        lines += ["", table, *(f"    {column.name} {column.type}" for column in description.columns)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
