"""Make the sample that users without data see: 30 days of an imaginary organization.

The pipeline's own metrics code computes it, so that it shows what real data would show.

    python -m finora_pipeline.dashboard.sample FILE DAY
"""

import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

SAMPLE_USER = "sample"


def main(file: Path, today: date) -> None:
    """Write the sample up to a UTC day into a DuckDB file with the published tables."""
    from finora_pipeline.warehouse.database import Warehouse
    from finora_pipeline.warehouse.metrics import refresh_metrics

    with tempfile.TemporaryDirectory(prefix="finora-sample-") as folder:
        warehouse = Warehouse(Path(folder))
        refresh_metrics(warehouse, [SAMPLE_USER], today)
        shutil.move(warehouse.database, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), date.fromisoformat(sys.argv[2]))
