"""Logs the run's metrics to a CSV file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm.callbacks.run_logger import LoggedMetrics
from lightning_ddpm.utils.files import write_atomically
from lightning_ddpm.utils.viewing import write_for_viewing

Row: TypeAlias = dict[str, Any]


class RunTable(Logger):
    """Logs metrics to ``metrics.csv`` in the run's folder, in the format of Lightning's CSVLogger.

    A resumed run continues the file: rows that a killed process wrote after its last checkpoint are removed, because
    those steps are done again. A full disk delays the rows and does not end the run.

    Args:
        folder: the run's folder.
        step: the number of steps after which the run resumes; 0 for a new one. Rows count steps from 0, as Lightning.
        prefix: text that begins the name of each metric, followed by a dash.
    """

    def __init__(self, folder: Path, step: int = 0, prefix: str = "") -> None:
        super().__init__()
        self._folder, self._step, self._prefix = Path(folder), step, f"{prefix}-" if prefix else ""
        self._pending: list[Row] = []
        self._columns: list[str] = []
        self._logged: LoggedMetrics | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / "metrics.csv"

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        row = step or 0
        if self._logged is None:
            self._logged = LoggedMetrics(self._resume(), self._step - 1)
        new = self._logged.select_new({f"{self._prefix}{name}": float(each) for name, each in metrics.items()}, row)
        if new.keys() - {f"{self._prefix}epoch"}:
            self._pending.append({**new, "step": row})

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not in the file yet."""
        if self._pending and write_for_viewing(str(self.path), self._write_pending):
            self._pending = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _resume(self) -> set[str]:
        """Remove the rows after the checkpoint's step; return the metrics of that step."""
        rows = _read_rows(self.path)
        kept = [row for row in rows if int(row["step"]) < self._step]
        self._columns = sorted({name for row in rows for name in row})
        if len(kept) < len(rows):
            write_for_viewing(str(self.path), lambda: self._write_all(kept, self._columns))
        return {name for row in kept if int(row["step"]) == self._step - 1 for name in row} - {"step"}

    def _write_pending(self) -> None:
        columns = sorted({*self._columns, *(name for row in self._pending for name in row)})
        if columns != self._columns or not self.path.exists():
            self._write_all([*_read_rows(self.path), *self._pending], columns)
            return
        with self.path.open("r+b", buffering=0) as file:
            end = file.seek(0, io.SEEK_END)
            content = memoryview(_format_rows(self._pending, columns, header=False))
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(end)
                raise

    def _write_all(self, rows: list[Row], columns: list[str]) -> None:
        write_atomically(self.path, lambda file: file.write(_format_rows(rows, columns, header=True)))
        self._columns = columns


def _format_rows(rows: list[Row], columns: list[str], header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _read_rows(path: Path) -> list[Row]:
    """Return the complete rows of a file, without empty cells; a killed process may have left half of one."""
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().decode(errors="replace").split("\n")
    rows = ({name: cell for name, cell in row.items() if name and cell} for row in csv.DictReader(lines))
    return [row for row in rows if row.get("step", "").isdigit()]
