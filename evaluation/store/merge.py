"""One file of records out of many parts."""

from __future__ import annotations

from .folder import COLUMNS, PARTS, RECORDS, RunFolder, parquet_bytes


def merge(run: RunFolder) -> int:
    """Merge the parts of a run folder into its ``records.parquet``, sorted by address and each address once.

    It may be stopped at any moment and run again: a part is removed when the file that has its rows is in place, and
    rows that come twice are the same. The caller holds the lock. The records are held in memory: a million need about
    1.3 GB.

    Returns:
        The number of records.

    Raises:
        InputError: a part is damaged, or the file cannot be written.
    """
    run.location.clear(PARTS)  # of a writer that was killed while it joined parts
    parts = [name for name in run.record_files() if name != RECORDS]
    if not parts:
        return len(run.addresses())
    table = run.records()
    others = sorted(set(table.column_names) - set(COLUMNS))
    run.write_bytes(RECORDS, parquet_bytes(table.select([*COLUMNS, *others])))
    for name in parts:
        run.location.remove(name)
    return len(table)
