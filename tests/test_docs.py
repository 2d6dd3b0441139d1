"""The documents agree with the program."""

import re
from pathlib import Path

import pytest

from finora_pipeline.plans import PLANS
from finora_pipeline.settings import DOCS_URL, Settings
from finora_pipeline.warehouse.tables import NAMED, TABLES
from tests import tables_page
from tests.commands_page import page
from tests.tables_diagram import GROUPS as DRAWN
from tests.tables_diagram import diagram

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING", "CHANGELOG")), *GUIDES]
# A file or folder in code type, such as `warehouse/load.py` or `accounts/`.
NAMED_FILE = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|sql|csv|html|json))?)`")


def test_the_commands_reference_equals_the_help():
    assert (ROOT / "docs" / "commands.md").read_text() == page(), "run make docs"


def test_the_dictionary_of_tables_equals_their_comments():
    assert tables_page.PAGE.read_text() == tables_page.page(), "run make docs"
    with tables_page.schema() as connection:
        assert tables_page.DIAGRAM.read_text() == diagram(connection), "run make docs"


def test_the_dictionary_has_every_table_column_and_macro():
    with tables_page.schema() as connection:
        published = tables_page.published(connection)
        macros = connection.execute(
            "SELECT function_name FROM duckdb_functions() WHERE schema_name = 'main' AND NOT internal"
        ).fetchall()
    explained = [table for _, tables in tables_page.GROUPS.values() for table in tables]
    assert sorted(explained) == sorted(published)
    assert sorted(tables_page.signatures()) == sorted(name for (name,) in macros)
    text = tables_page.PAGE.read_text()
    assert all(f"\n### {table}\n" in text for table in published)


def test_the_diagram_has_every_table_but_views_with_names():
    drawn = {box.table for _, _, boxes in DRAWN for box in boxes}
    with tables_page.schema() as connection:
        assert drawn == tables_page.published(connection).keys() - {"about", *NAMED}
        connection.execute("ALTER TABLE daily_costs RENAME COLUMN cost_model TO model_of_costs")
        with pytest.raises(ValueError, match="daily_costs has no column cost_model"):
            diagram(connection)


@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
def test_the_documented_plans_are_the_plans(document: str):
    text = (ROOT / document).read_text()
    for plan in PLANS.values():
        kept = f"{plan.history_days} days" if plan.history_days else "all"
        assert f"| {plan.name} | {plan.interval_text} | {kept} |" in text


def test_every_published_table_is_explained_to_analysts():
    text = (ROOT / "docs" / "analysts.md").read_text()
    for table in TABLES:
        assert re.search(rf"^\|[^|]*`{table}`", text, re.MULTILINE), table


def test_links_between_documents_have_a_target():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_guide_is_in_the_sites_navigation():
    navigation = re.findall(r"^\s+- .*?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    documents = [guide.relative_to(ROOT / "docs").as_posix() for guide in GUIDES]
    assert sorted(navigation) == sorted(documents)


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_documents_name_exist(document: str):
    text = (ROOT / document).read_text()
    names = [name for name in NAMED_FILE.findall(text) if "NNNN" not in name]
    assert len(names) > 20
    assert [n for n in names if not any((f / n).exists() for f in (ROOT, ROOT / "finora_pipeline"))] == []


def test_every_setting_is_documented():
    documented = (ROOT / "docs" / "operations.md").read_text() + (ROOT / "docs" / "dashboard.md").read_text()
    names = re.findall(r"^    `([A-Z_]+)`", Settings.__doc__ or "", re.MULTILINE)
    assert len(names) > 10
    # Set by finora up for its own processes.
    assert [name for name in names if f"`{name}`" not in documented and name != DOCS_URL] == []
