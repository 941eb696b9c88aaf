"""TensorBoard's event files."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm


class Events:
    """Write scalars at once; if the disk fails, print a note and write no more.

    tensorboardX's ``SummaryWriter`` writes in a thread; were that to end with an error, the run would wait
    for it for ever.

    Args:
        folder: where the file goes.
        first: events of this step and later ones in older files are hidden.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.writer: EventsWriter | None = None
        with self._until_an_error():
            self.writer = EventsWriter(str(folder / "events"))
            self.writer.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Write the value of every tag, except where it is nan, as of sizes that no object has.

        ``when`` is in seconds, as of ``time.time()``.
        """
        if self.writer is not None:
            with self._until_an_error():
                for tag, value in values.items():
                    if not math.isnan(value):
                        self.writer.write_event(Event(wall_time=when, step=step, summary=scalar(tag, value)))
                self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            with self._until_an_error():
                self.writer.close()

    @contextmanager
    def _until_an_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.writer = None
            tqdm.write(f"note: no more events for TensorBoard: {error.strerror or error}")
