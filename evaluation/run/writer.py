"""Writing finished batches beside the making of the next ones; in such an order that a record has all it names."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..store import shards
from ..store.folder import PARTS, TRACES, RunFolder, feature_folder, joined

WAITING = 4  # finished batches that are held in memory at most
TOGETHER = 256  # small files of one kind that become a larger one


@dataclass(frozen=True, eq=False)
class Finished:
    """The records, images, features and traces that are kept of a batch.

    Args:
        records: a row a sample.
        images: functions that make the contents of image files, by name: encoding is left to the writer.
        features: by extractor, the addresses and a row for each.
        traces: by address and name.
    """

    records: pa.Table
    images: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    features: Mapping[str, tuple[list[str], NDArray[Any]]] = field(default_factory=dict)
    traces: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)


class Writer:
    """Writes batches in a thread of its own; an error there is raised by the next call here.

    Args:
        run: where to.
        written: called after each batch with the number of samples and what they have cost.
    """

    def __init__(self, run: RunFolder, written: Callable[[int, int], None] | None = None) -> None:
        self.run, self.written = run, written
        self._queue: queue.Queue[tuple[Callable[[], Finished], int] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._small: dict[str, list[str]] = {}
        self._thread = threading.Thread(target=self._work, name="guidestack-writer", daemon=True)
        self._thread.start()

    def add(self, batch: Callable[[], Finished], evaluations: int = 0) -> None:
        """Hand over a batch, which has cost so many evaluations; waits while too many are waiting.

        Args:
            batch: called in the writer's thread, which measures there what is to be measured.
            evaluations: that it has cost.

        Raises:
            InputError: a batch could not be written.
        """
        self._raise()
        self._queue.put((batch, evaluations))

    def close(self) -> None:
        """Wait until everything that was handed over is written.

        Raises:
            InputError: a batch could not be written.
        """
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (got := self._queue.get()) is not None:
            if self._error is None:  # after an error the rest is taken and dropped, so that nobody waits for ever
                try:
                    self._write(*got)
                except BaseException as error:  # whatever it is, the run must know
                    self._error = error

    def _write(self, finished: Callable[[], Finished], evaluations: int) -> None:
        batch = finished()
        for name, contents in batch.images.items():
            self.run.write_bytes(name, contents())
        for extractor, (addresses, rows) in batch.features.items():
            self._note(feature_folder(extractor), self.run.add_features(extractor, addresses, rows))
        if batch.traces:
            self._note(TRACES, self.run.add_traces(batch.traces))
        # Last: a sample with a record is finished.
        self._note(PARTS, self.run.add_records(batch.records))
        if self.written:
            self.written(len(batch.records), evaluations)

    def _note(self, folder: str, name: str) -> None:
        """Note a file that was written; `TOGETHER` of a folder become one, since a start reads every file.

        The large one is in place before the small ones go: in between, rows come twice, and are the same.
        """
        small = self._small.setdefault(folder, [])
        small.append(name)
        if len(small) < TOGETHER:
            return
        if folder == PARTS:
            self.run.add_records(joined([self.run.read_records(one) for one in small]))
        else:
            location = self.run.location
            shards.add(location, folder, shards.joined([shards.load(location, one) for one in small]))
        for one in small:
            self.run.location.remove(one)
        small.clear()
