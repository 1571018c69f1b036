"""Resuming under a changed config: what follows it, what is refused, and which checkpoint is used."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml
from helpers.run_spies import diary

from lightning_ddpm.callbacks.resume import compare_configs
from lightning_ddpm.models.checkpoint import previous_path, read_checkpoint
from lightning_ddpm.models.optimizer import normalize_optimizer_state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three steps; return the folder, with the checkpoints of steps 3 and 2."""
    from lightning_ddpm.commands.main import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert main(["fit", "--config", str(write_yaml(folder / "config.yaml", config(folder)))]) == 0
    return folder


def config(folder: Path) -> Any:
    """Return the config of a tiny run over 40 images with a diary and a checkpoint of every step."""
    made = tiny_digits(folder / "run")
    made["trainer"].update(max_steps=3, limit_val_batches=0)
    made["trainer"]["callbacks"] = [
        {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": 0.9}},
        {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 1}},
        {"class_path": "helpers.run_spies.Diary", "init_args": {"folder": str(folder)}},
    ]
    made["model"]["init_args"]["lr_scheduler"]["init_args"].update(start_factor=0.1, total_iters=10)
    made["data"].update(source={"class_path": "helpers.run_spies.NumberedDigits"}, batch_size=8)
    return made


@pytest.fixture
def resume(trained: Path, tmp_path: Path, command: Any) -> Any:
    """Resume a copy of the run until step 7 with given options; return (status, stdout, stderr, folder)."""

    def call(*options: object, change: Any = None) -> tuple[int, str, str, Path]:
        shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
        made = config(tmp_path)
        made["trainer"]["max_steps"] = 7
        if change:
            change(made)
        words = ("fit", "--config", write_yaml(tmp_path / "config.yaml", made), "--ckpt_path", "last", *options)
        return (*command(*words), tmp_path)

    return call


def test_a_run_resumes_with_an_optimizer_that_is_no_longer_fused(resume: Any) -> None:
    status, out, err, folder = resume("--model.optimizer.fused", "false")
    assert status == 0, err
    assert "changed: model.init_args.optimizer.init_args.fused was True, is False" in out
    (optimizer,) = torch.load(folder / "run" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert optimizer["param_groups"][0]["fused"] is False
    assert {int(state["step"]) for state in optimizer["state"].values()} == {7}


def test_step_counters_move_to_the_weights_device_for_a_fused_optimizer() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    optimizer.state[weight] = {"step": torch.tensor(3.0)}
    normalize_optimizer_state(optimizer)
    assert optimizer.state[weight]["step"] == 3
    assert optimizer.state[weight]["step"].device.type == "cpu"
    optimizer.param_groups[0]["fused"] = True
    normalize_optimizer_state(optimizer)
    assert optimizer.state[weight]["step"].device.type == "meta"


def test_without_changes_none_are_reported(resume: Any) -> None:
    status, out, err, folder = resume("--trainer.max_steps", "3")
    assert status == 0, err
    assert f"resuming after step 3 from {folder / 'run' / 'last.ckpt'}" in out
    assert [line for line in out.splitlines() if line.startswith("changed:")] == [
        f"changed: trainer.{name} was {old}, is {new}" for name, old, new in paths_changed(out)
    ]


def paths_changed(out: str) -> list[tuple[str, str, str]]:
    """Return the reported changes, which must be the copy's folders only."""
    changed = [line.removeprefix("changed: trainer.") for line in out.splitlines() if line.startswith("changed: ")]
    split = [(line.split(" was ")[0], *line.split(" was ")[1].split(", is ")) for line in changed]
    assert {name for name, _, _ in split} == {"default_root_dir", "callbacks[2].init_args.folder"}
    return split


def test_the_learning_rate_follows_the_current_config_and_its_schedule(resume: Any) -> None:
    status, out, err, folder = resume(
        "--model.optimizer.init_args.lr", "0.002", "--model.optimizer.init_args.eps", "1e-7"
    )
    assert status == 0, err
    assert "changed: model.init_args.optimizer.init_args.lr was 0.01, is 0.002" in out
    (group,) = read_checkpoint(folder / "run" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.002 * (0.1 + 0.9 * 7 / 10))
    assert group["eps"] == 1e-7
    assert {
        int(state["step"])
        for state in read_checkpoint(folder / "run" / "last.ckpt")["optimizer_states"][0]["state"].values()
    } == {7}


def test_without_a_change_the_learning_rate_continues(resume: Any) -> None:
    status, _, err, folder = resume()
    assert status == 0, err
    (group,) = read_checkpoint(folder / "run" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.01 * (0.1 + 0.9 * 7 / 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.network.init_args.width", "16"), "network.init_args.width is 16, but the checkpoint's run has 8"),
        (("--model.schedule.init_args.steps", "30"), "schedule.init_args.steps is 30, but the checkpoint's run has 20"),
        (("--model.optimizer", "torch.optim.SGD"), "optimizer.class_path is torch.optim.SGD"),
        (("--seed_everything", "1"), "seed_everything is 1, but the checkpoint's run has 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_changes_that_forbid_resuming_are_refused(options: tuple[str, str], message: str, resume: Any) -> None:
    status, _, err, folder = resume(*options)
    assert status == 2, err
    assert message in err
    assert "a run cannot be resumed with another" in err
    assert read_checkpoint(folder / "run" / "last.ckpt")["global_step"] == 3


@pytest.mark.parametrize("size", [4, 7, 16])
def test_another_batch_size_resumes_at_the_next_image_of_the_order(size: int, resume: Any, trained: Path) -> None:
    status, out, err, folder = resume("--data.batch_size", str(size), "--trainer.max_steps", "6")
    assert status == 0, err
    assert f"changed: data.batch_size was 8, is {size}" in out
    entries = diary(folder)[len(diary(trained)) :]
    order = [number for _, what, value in diary(trained) if what == "batch" for number in value[2:]]
    later = [(value[0], value[2:]) for _, what, value in entries if what == "batch"]
    rest = [number for epoch, numbers in later if epoch == 0 for number in numbers]
    whole = sorted([*order, *rest])
    assert whole == sorted(set(whole)), "an image was used twice"
    if len(later) > -(-16 // size):
        assert whole == list(range(40)), "an image was skipped"
        assert later[-(-16 // size)][0] == 1


def test_other_images_are_refused(resume: Any) -> None:
    status, _, err, _ = resume("--data.source.n", "39")
    assert status == 2
    assert "trained on 40 images and there are 39 now" in err


def test_a_missing_run_cannot_be_resumed(command: Any, tmp_path: Path) -> None:
    status, _, err = command(
        "fit", "--config", write_yaml(tmp_path / "c.yaml", config(tmp_path)), "--ckpt_path", "last"
    )
    assert status == 2
    assert f"there is no checkpoint {tmp_path / 'run' / 'last.ckpt'}" in err


def test_a_damaged_last_checkpoint_is_reported_and_the_previous_one_used(resume: Any, trained: Path) -> None:
    last = trained / "run" / "last.ckpt"
    whole = last.read_bytes()
    try:
        last.write_bytes(whole[: len(whole) // 2])
        status, out, err, folder = resume()
    finally:
        last.write_bytes(whole)
    assert status == 0, err
    run = folder / "run"
    assert (
        f"{run / 'last.ckpt'} is missing or damaged; using the previous one, {previous_path(run / 'last.ckpt')}" in out
    )
    assert "resuming after step 2" in out
    assert [read_checkpoint(path)["global_step"] for path in (run / "last.ckpt", previous_path(run / "last.ckpt"))] == [
        7,
        6,
    ]
    uninterrupted = torch.load(run / "last.ckpt", weights_only=True)
    state = uninterrupted["ImageDataModule"]
    assert {name: state[name] for name in ("epoch", "seen", "images")} == {"epoch": 1, "seen": 16, "images": 40}
    assert state["batch"] == [8, 1]


def test_an_option_that_the_checkpoint_is_older_than_was_not_set_and_no_change_at_its_null() -> None:
    before = {"model": {"network": {"width": 8}}, "data": {"batch_size": 4}}
    now = {"model": {"network": {"width": 8, "heads": 4, "tags": None}}, "data": {"batch_size": 4, "mask": None}}
    assert compare_configs(now, before) == [("model.network.heads", "not set", 4)]
