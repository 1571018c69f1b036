"""An event file of TensorBoard that outlives a full disk, and whose place among others does not depend on a clock."""

import io
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from lightning_ddpm.utils.viewing import write_for_viewing

PENDING_BYTES = 64 * 2**20
"""How much is kept in memory while the disk is full; of more, the oldest events are lost."""


class EventFile:
    """Writes each event to the disk at once, in the file that TensorBoard reads last.

    TensorBoard's own writer has a thread that ends with the first error of the disk and ends training with it. Here the
    error is reported, and the events are written once there is space again. There is no file before
    :meth:`start_writing`: a run that ends before its first step leaves none.

    Args:
        folder: the folder of the file.
        first_step: points of older files from this step on are hidden by TensorBoard; ``None`` for none.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        self.folder, self.first_step = folder, first_step
        self._pending: list[bytes] = []
        self._writing = False
        self._file: BinaryIO | None = None

    def get_logdir(self) -> str:
        """Return the folder, by the name that torch's ``FileWriter`` calls."""
        return str(self.folder)

    def start_writing(self) -> None:
        """Write the events so far, and all others when they come."""
        self._writing = True
        self.flush()

    def add_event(self, event: Any) -> None:
        """Write an ``Event``."""
        self._pending.append(_encode(event))
        self.flush()

    def flush(self) -> None:
        """Write what the disk has refused so far."""
        if not self._writing or not self._pending:
            return
        if not write_for_viewing(f"TensorBoard's curves in {self.folder}", self._write_pending):
            while sum(map(len, self._pending)) > PENDING_BYTES:
                del self._pending[0]

    def close(self) -> None:
        """Close the file; a later event opens another."""
        self.flush()
        if self._file is not None:
            file, self._file = self._file, None
            write_for_viewing(f"TensorBoard's curves in {self.folder}", file.close)

    def reopen(self) -> None:
        """Do nothing: the next event opens a file."""

    def _write_pending(self) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / _choose_name(self.folder)).open("xb", buffering=0)
            self._pending[:0] = _list_first_records(self.first_step)
            self.first_step = None
        end = self._file.seek(0, os.SEEK_END)
        content = memoryview(b"".join(self._pending))
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._file.truncate(end)  # TensorBoard stops reading at half an event
            raise
        self._pending.clear()


def _choose_name(folder: Path) -> str:
    """Return a name that sorts behind all event files of the folder, in which order TensorBoard reads them.

    Its first part is the time, as in TensorBoard's own names, unless the clock went backwards.
    """
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    last = max((path.name for path in folder.glob("*tfevents*")), default="")
    if name > last:
        return name
    counted = re.fullmatch(r"(.*)~(\d{6})", last)
    return f"{counted[1]}~{int(counted[2]) + 1:06d}" if counted else f"{last}~000001"


def _list_first_records(first_step: int | None) -> list[bytes]:
    """Return the records that begin a file: its version, and the step from which on it replaces older files."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import

    version: Any = {"wall_time": time.time(), "file_version": "brain.Event:2"}
    if first_step is None:
        return [_encode(Event(**version))]
    start = Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START))
    return [_encode(Event(**version, step=first_step)), _encode(start)]


def _encode(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter  # slow to import

    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()
