"""The documents say what the program does."""

import re
from pathlib import Path

from finora_pipeline.plans import PLANS
from finora_pipeline.settings import DOCS_URL, Settings
from finora_pipeline.warehouse.schema import TABLES
from tests.commands_page import page

ROOT = Path(__file__).parent.parent


def test_the_commands_reference_is_true():
    assert (ROOT / "docs" / "commands.md").read_text() == page(), "run make docs"


def test_the_readmes_plans_are_the_plans():
    readme = (ROOT / "README.md").read_text()
    for plan in PLANS.values():
        kept = f"{plan.history_days} days" if plan.history_days else "all"
        assert f"| {plan.name} | {plan.interval_text} | {kept} |" in readme


def test_every_published_table_is_explained_to_analysts():
    text = (ROOT / "docs" / "analysts.md").read_text()
    for table in TABLES:
        assert re.search(rf"^\|[^|]*`{table}`", text, re.MULTILINE), table


def test_links_between_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_setting_is_documented():
    documented = (ROOT / "docs" / "operations.md").read_text() + (ROOT / "docs" / "dashboard.md").read_text()
    names = re.findall(r"^    `([A-Z_]+)`", Settings.__doc__ or "", re.MULTILINE)
    assert len(names) > 10
    # Set by finora up for its own processes.
    assert [name for name in names if f"`{name}`" not in documented and name != DOCS_URL] == []
