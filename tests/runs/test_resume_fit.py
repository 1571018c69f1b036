"""A run that is killed and resumed ends bit for bit as an uninterrupted one, with every image once per epoch."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import REPOSITORY, TWO, callback, ddpm, get_variables, tiny_digits, write_yaml
from helpers.forked_program import start_forked
from helpers.run_results import assert_equal, curves, trained
from helpers.run_spies import diary, first_epoch, steps

from lightning_ddpm.utils.run_files import UNSAVED

STEPS = 12
KILLED = -signal.SIGKILL


def config(folder: Path, two: bool = False, **spy: Any) -> Any:
    """Configure twelve steps over 40 images, with dropout, flips, evaluations, validations and checkpoints."""
    made = tiny_digits(folder / "run")
    made["trainer"].update(max_steps=STEPS, val_check_interval=5, limit_val_batches=1)
    callback(made, "Evaluation").update(n=8, every_n_steps=4)
    callback(made, "SampleGrid").update(every_n_steps=6)
    callback(made, "Checkpoints").update(every_n_steps=3)
    made["model"]["init_args"]["network"]["init_args"].update(dropout=0.3)
    made["model"]["init_args"]["lr_scheduler"]["init_args"].update(total_iters=10)
    made["trainer"]["callbacks"].append(
        {"class_path": "helpers.run_spies.Diary", "init_args": {"folder": str(folder), **spy}}
    )
    made["data"].update(
        source={"class_path": "helpers.run_spies.NumberedDigits"}, batch_size=4 if two else 8, flip=True
    )
    return made


def fit(folder: Path, *options: object, two: bool = False, spy: Any = None, every: int = 3, **arguments: Any) -> Any:
    """Run ``fit`` in other processes, with a checkpoint at an interval of steps."""
    made = config(folder, two, **(spy or {}))
    callback(made, "Checkpoints").update(every_n_steps=every)
    file = write_yaml(folder / "config.yaml", made)
    words = ("fit", "--config", file, *(TWO if two else ()), *options)
    return ddpm(*words, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}", **arguments)


def assert_same_run(one: Path, other: Path, ranks: int = 1, but: int | None = None) -> None:
    """Compare weights, curves, and the batches and validations of each step except ``but``."""
    assert_equal(trained(one / "run"), trained(other / "run"))
    assert curves(one / "run") == curves(other / "run")
    for rank in range(ranks):
        first, second = (steps(each, rank) for each in (one, other))
        assert {step: first[step] for step in first if step != but} == {
            step: second[step] for step in second if step != but
        }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without interruption; return the folder."""
    folder = tmp_path_factory.mktemp("whole")
    ended = fit(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two ranks without interruption; return the folder."""
    folder = tmp_path_factory.mktemp("whole-of-two")
    ended = fit(folder, two=True)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_an_uninterrupted_run_sees_every_image_once_per_epoch_and_logs_every_step(whole: Path) -> None:
    batches = [value for happened in steps(whole).values() for what, value in happened if what == "batch"]
    for epoch in (0, 1):
        numbers = [number for each in batches if each[0] == epoch for number in each[2:]]
        assert sorted(numbers) == list(range(40))
    assert [step for step, _ in curves(whole / "run")["train/loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in curves(whole / "run")["val/loss"]] == [5, 10]


def test_a_killed_run_resumes_to_the_same_end(whole: Path, tmp_path: Path) -> None:
    killed = fit(tmp_path, spy={"kill_at": 11})
    assert killed.returncode == KILLED, killed.stderr
    resumed = fit(tmp_path, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step 9 from {tmp_path / 'run' / 'last.ckpt'}" in resumed.stdout
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_a_run_resumed_at_its_end_repeats_the_last_evaluation_and_logs_it_once(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    resumed = fit(tmp_path, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {STEPS}: val/memorisation_digits" in resumed.stdout
    assert f"all {STEPS} steps are done; --trainer.max_steps N adds some" in resumed.stdout
    assert curves(tmp_path / "run") == curves(whole / "run")
    assert [step for step, _ in curves(tmp_path / "run")["val/memorisation_digits"]] == [STEPS]


@pytest.mark.slow
def test_a_run_with_accumulated_gradients_and_workers_resumes_to_the_same_end(tmp_path: Path) -> None:
    options = ("--trainer.accumulate_grad_batches", "2", "--data.num_workers", "2")
    for name in ("whole", "killed"):
        ended = fit(tmp_path / name, *options, spy={"kill_at": 10} if name == "killed" else None)
        assert ended.returncode == (KILLED if name == "killed" else 0), ended.stderr
    resumed = fit(tmp_path / "killed", *options, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 9 " in resumed.stdout
    # Step 9 ends an epoch, and Lightning does not repeat what the killed process did there after the checkpoint.
    assert_same_run(tmp_path / "whole", tmp_path / "killed", but=9)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "every"), [(0, 3), (1, 1)])
def test_a_signal_to_one_of_two_ranks_stops_both_and_they_resume(
    whole_of_two: Path, tmp_path: Path, rank: int, every: int
) -> None:
    name = ("SIGUSR1", "SIGTERM")[rank]
    stopped = fit(tmp_path / "stopped", two=True, spy={"kill_at": 7, "signal_name": name, "rank": rank}, every=every)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{name}: stopped after step 8; resume with --ckpt_path last" in stopped.stdout
    assert stopped.stdout.count("stopped after step") == 1
    resumed = fit(tmp_path / "stopped", "--ckpt_path", "last", two=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 8 " in resumed.stdout
    assert_same_run(whole_of_two, tmp_path / "stopped", ranks=2)
    assert first_epoch(*(steps(tmp_path / "stopped", rank) for rank in (0, 1))) == list(range(40))


@pytest.mark.slow
def test_another_number_of_ranks_resumes_at_the_next_image_of_the_order(tmp_path: Path) -> None:
    for folder, before, after in ((tmp_path / "more", False, True), (tmp_path / "fewer", True, False)):
        killed = fit(folder, two=before, spy={"kill_at": 4})
        assert killed.returncode != 0
        resumed = fit(folder, "--ckpt_path", "last", two=after)
        assert resumed.returncode == 0, resumed.stderr
        assert "resuming after step 3 " in resumed.stdout
        assert f"changed: data.batch_size was {4 if before else 8}, is {4 if after else 8}" in resumed.stdout
        second = {step: done for step, done in steps(folder, 1).items() if after or step < 3}
        assert first_epoch(steps(folder, 0), second) == list(range(40))


@pytest.mark.slow
def test_two_ranks_resume_after_one_was_killed(whole_of_two: Path, tmp_path: Path) -> None:
    killed = fit(tmp_path / "killed", two=True, spy={"kill_at": 8, "rank": 1})
    assert killed.returncode != 0
    resumed = fit(tmp_path / "killed", "--ckpt_path", "last", two=True)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(whole_of_two, tmp_path / "killed", ranks=2)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes_to_the_same_end(whole: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    file = write_yaml(tmp_path / "config.yaml", config(tmp_path))
    environment = get_variables({"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"})

    def resume() -> tuple[str, ...]:
        begun = any((tmp_path / "run" / name).exists() for name in (UNSAVED, "last.ckpt"))
        return ("--ckpt_path", "last") if begun else ()

    for _ in range(6):
        words = ["fit", "--config", str(file), *resume()]
        process = start_forked(words, REPOSITORY, environment, (tmp_path / "out", tmp_path / "err"))
        begun = len(diary(tmp_path)) if (tmp_path / "rank-0.jsonl").exists() else 0
        while process.exitcode is None and not ((tmp_path / "rank-0.jsonl").exists() and len(diary(tmp_path)) > begun):
            time.sleep(0.01)  # until it trains
        time.sleep(moments.uniform(0, 1))
        process.kill()
        process.join()
    resumed = fit(tmp_path, *resume())
    assert resumed.returncode == 0, resumed.stderr
    # A run that is killed between the last checkpoint and the end does not reach the end of its last epoch again.
    assert_same_run(whole, tmp_path, but=STEPS)
