"""TensorBoard's event files."""

import math
from collections.abc import Mapping
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
        try:
            self.writer = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(step=first, session_log=start))
        except OSError as error:
            self._give_up(error)

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Write the value of every tag, except where it is nan, as of sizes that no object has.

        ``when`` is in seconds, as of ``time.time()``.
        """
        if self.writer is None:
            return
        try:
            for tag, value in values.items():
                if math.isnan(value):
                    continue
                summary = scalar(tag, value)
                self.writer.write_event(Event(wall_time=when, step=step, summary=summary))
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.writer = None
        tqdm.write(f"note: no more events for TensorBoard: {error.strerror or error}")
