"""EventFile and RunTable: what is on the disk when it was full, or when the clock went backwards."""

from pathlib import Path

import pytest
from helpers.full_disk import limit_files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ddpm.callbacks import RunLogger, RunTable, event_file


def log(logger: RunLogger | RunTable, *steps: int, close: bool = True) -> None:
    """Log x = step and y = -step at these steps, counted from 1, as Lightning does."""
    for step in steps:
        logger.log_metrics({"x": step, "epoch": 0}, step - 1)
        logger.log_metrics({"y": -step}, step - 1)
        logger.save()
    if close:
        logger.finalize("failed")


def shown(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    points = [(each.step, each.value) for each in events.Scalars("x")]
    assert [(each.step, -each.value) for each in events.Scalars("y")] == points
    return points


@pytest.mark.parametrize("later", [1.0, 1_700_000_000.0, 9_999_999_998.0])
def test_curves_follow_the_steps_whatever_the_clock_and_the_host_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    clock, host = iter([1_800_000_000.0, later, later - 1, later - 2]), iter(["zebra", "ape", "bee", "cat"])
    for resumed in (0, 4, 6, 8):  # each process is killed two steps after its last checkpoint
        now, name = next(clock), next(host)
        monkeypatch.setattr(event_file.time, "time", lambda now=now: now)
        monkeypatch.setattr(event_file.socket, "gethostname", lambda name=name: name)
        log(RunLogger(tmp_path, resumed), *range(resumed + 1, resumed + 7))
    assert shown(tmp_path) == [(step, step) for step in range(1, 15)]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_of_the_last_moment_before_the_year_2286_is_continued_too(tmp_path: Path) -> None:
    log(RunLogger(tmp_path), 1, 2, 3)
    (file,) = tmp_path.iterdir()
    file.rename(file.with_name("events.out.tfevents.9999999999.host.1.0"))
    for resumed in range(2, 15):
        log(RunLogger(tmp_path, resumed), resumed + 1, resumed + 2)
    assert shown(tmp_path) == [(step, step) for step in range(1, 17)]


def test_nothing_is_written_before_the_first_metric(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run")
    logger.experiment.add_text("protocol", "n=5")
    logger.save()
    logger.finalize("failed")
    assert not (tmp_path / "run").exists()
    log(logger, 1)
    assert EventAccumulator(str(tmp_path / "run")).Reload().Tags()["tensors"] == ["protocol/text_summary"]


def test_points_of_a_full_disk_are_written_when_there_is_space_and_it_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger, table = RunLogger(tmp_path), RunTable(tmp_path)
    for each in (logger, table):
        log(each, *range(1, 11), close=False)
    with limit_files(tmp_path.joinpath("metrics.csv").stat().st_size + 5):
        for each in (logger, table):
            log(each, *range(11, 21), close=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"cannot write TensorBoard's curves in {tmp_path} ([Errno 27] File too large)")
    assert second.startswith(f"cannot write {tmp_path / 'metrics.csv'} ([Errno 27] File too large)")
    assert shown(tmp_path) == [(step, step) for step in range(1, 11)]
    for each in (logger, table):
        log(each, *range(21, 31))
    assert shown(tmp_path) == [(step, step) for step in range(1, 31)]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,x,y"
    assert lines[1:] == [
        line for step in range(1, 31) for line in (f"0.0,{step - 1},{step}.0,", f",{step - 1},,-{step}.0")
    ]
    assert capsys.readouterr().out == ""


def test_a_new_column_on_a_full_disk_keeps_the_rows_before(tmp_path: Path) -> None:
    table = RunTable(tmp_path)
    table.log_metrics({"x": 1.0}, 0)
    table.save()
    with limit_files(10):
        table.log_metrics({"z": 2.0}, 1)
        table.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,x", "0,1.0"]
    table.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,x,z", "0,1.0,", "1,,2.0"]
