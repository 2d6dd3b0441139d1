"""Raw pages on disk: Parquet, one row per page as OpenAI sent it.

    raw/pending/<kind>~<run>~<number>.parquet       landed, not loaded yet
    raw/pages/<kind>/<day fetched>/<same name>      loaded
    raw/quarantine/<same name>                      cannot be loaded; <same name>.json says why

A file has its name only once it is whole and on disk, and holds complete page sets only. It is moved after
the transaction that loads it; if the move is lost, the ledger of loaded files recognizes the file.
Knows nothing of the database.
"""

from finora_pipeline.warehouse.raw.files import RawFile, RawFileDamaged
from finora_pipeline.warehouse.raw.folder import RawPages
from finora_pipeline.warehouse.raw.landing import PageSet, RawWriter
from finora_pipeline.warehouse.raw.quarantine import Quarantined

__all__ = ["PageSet", "Quarantined", "RawFile", "RawFileDamaged", "RawPages", "RawWriter"]
