"""The examples of docs/python.md and the cells of the notebook run, and their figures are right."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

import finora_pipeline
from tests.conftest import Installation
from tests.reading.conftest import DAYS

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook" / "costs.ipynb"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.usefixtures("installation")
def test_an_example_of_the_python_guide_runs_alone(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if "polars" in example and importlib.util.find_spec("polars") is None:
        if os.environ.get("FINORA_TEST_EVERYTHING"):
            pytest.fail("polars is missing: install requirements-dev.lock.")
        pytest.skip("polars is missing: install requirements-dev.lock.")
    # One of them writes a file.
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/python.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_guide_has_an_example_of_each_way_to_read():
    for name in ("read", "scan", "connect"):
        assert any(f"finora_pipeline.{name}(" in example for example in EXAMPLES)


def test_the_notebook_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert NOTEBOOK.read_text() == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def test_the_notebook_runs_and_shows_the_costs(installation: Installation):
    # An hour later OpenAI has booked late usage of the days before.
    simulator = installation.openai.simulator
    simulator.frozen_now = simulator.now + timedelta(hours=1)
    assert installation.refresh().succeeded
    command = [sys.executable, "-m", "tests.reading.run_notebook", str(NOTEBOOK)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    shown = json.loads(found.stdout)
    assert "acme" in shown["connections"]
    assert "#9cd3c8" in shown["chart"]

    def table(cell: str) -> pd.DataFrame:
        return pd.read_html(StringIO(shown[cell]))[0]

    truth = float(installation.openai.truth(0, installation.history(DAYS)).total)
    assert sum(table("months")["net_usd"].tolist()) == pytest.approx(truth)
    assert sum(table("close")["facts_usd"].tolist()) == pytest.approx(truth)
    assert set(table("close")["days_to_check"]) == {0}
    assert len(table("to-check")) == 0
    assert min(table("unit")["usd_per_1k_tokens"].tolist()) > 0
    with finora_pipeline.connect() as connection:
        (restated,) = connection.execute(
            "SELECT count(DISTINCT date) FROM cost_revisions "
            "WHERE user_id = 'acme' AND (observed_at AT TIME ZONE 'UTC')::DATE > date"
        ).fetchall()[0]
    assert len(table("restated")) == restated > 0
