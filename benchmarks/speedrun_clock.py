"""The clock of a speed run: when to keep weights, and when to stop."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the time, after which the averaged weights are kept."""


@dataclass
class Clock:
    """Keeps the weights of a run at shares of its time.

    Attributes:
        folder: where the weights are written.
        start: ``time.time()`` at which the clock started, before this process did.
        seconds: the time of the run.
        reserve: seconds that are kept for the last step and for writing its weights; grows to what they took before.
    """

    folder: Path
    start: float
    seconds: float
    reserve: float = 0.5
    _left: list[float] = field(default_factory=lambda: list(SHARES))
    _before: float | None = None

    def step(self, images: int, save: Callable[[Path], None], is_last: bool = False) -> bool:
        """Take note of a step: keep the weights if it is time; return whether the run is over.

        Args:
            images: number of training images seen so far.
            save: writes the averaged weights to a path.
            is_last: the program takes no further steps.
        """
        now = time.time()
        if self._before is not None:
            self.reserve = max(self.reserve, 1.5 * (now - self._before))
        self._before = now
        elapsed = now - self.start
        due = [share for share in self._left if elapsed + (self.reserve if share == 1 else 0) >= share * self.seconds]
        over = is_last or 1.0 in due
        if due or over:
            share = 1.0 if over else max(due)
            self._left = [each for each in self._left if each > share]
            self._keep(share, images, save)
        return over

    def _keep(self, share: float, images: int, save: Callable[[Path], None]) -> None:
        begun = time.time()
        path = self.folder / f"weights-{share:g}.pt"
        save(path)
        ended = time.time()
        self.reserve = max(self.reserve, 1.5 * (ended - begun))
        facts = {"share": share, "minutes": (ended - self.start) / 60, "images": images}
        path.with_suffix(".json").write_text(json.dumps(facts))
        self._before = None  # writing is no step


def read_snapshots(folder: Path) -> dict[Path, dict[str, float]]:
    """Return the minutes and the number of images of the weights that a run kept, by file, in order."""
    found = {path.with_suffix(".pt"): json.loads(path.read_text()) for path in folder.glob("weights-*.json")}
    return dict(sorted(found.items(), key=lambda each: each[1]["minutes"]))
