"""The command line: its main path through real processes, and what it says to bad input."""

import os
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import REPOSITORY, callback, ddpm, read_yaml, run, tiny_digits, write_yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ddpm.data.image_io import arrange_grid, to_uint8
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.random import ImageNoise


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def images(folder, n):
    return np.stack([pixels(folder / f"{index:06d}.png") for index in range(n)])


def losses(folder):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The main path


def test_fit_writes_one_folder_with_checkpoints_config_events_and_samples(digits_run):
    folder = digits_run.folder
    assert {"last.ckpt", "best.ckpt", "config.yaml"} <= {path.name for path in folder.iterdir()}
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "memorisation-0000004-distances.png",
        "memorisation-0000004.png",
        "step-0000002.png",
        "step-0000004.png",
    ]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    events = EventAccumulator(str(folder)).Reload()
    assert [step for step, _ in losses(folder)] == [1, 2, 3, 4]
    distances = {event.step: event.value for event in events.Scalars("val/fd_digits")}
    assert sorted(distances) == [2, 4]
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(distances, key=distances.get)


def test_fit_says_at_the_start_what_it_will_do_and_where(digits_run):
    out = digits_run.out
    parameters = sum(p.numel() for p in load(digits_run.folder / "last.ckpt", DDPM).parameters())
    for said in (
        str(digits_run.folder),
        "1 x cpu, precision 32-true",
        "1618 of 1x8x8, 179 held out",
        f"{parameters:,} parameters",
        "4 steps of 16 images, 102 steps per epoch",
        "65 images x 2 network evaluations",
    ):
        assert said in out


def test_fit_prints_plain_lines_and_no_bar_in_a_log_file(digits_run):
    assert re.search(r"step 4 of 4: train/loss [\d.]+, val/loss [\d.]+, val/fd_digits [\d.]+; ", digits_run.out)
    for sign in ("\r", "\x1b", "━", "█"):
        assert sign not in digits_run.out + digits_run.err


def test_the_saved_config_is_complete_and_runs_again_with_the_same_losses(digits_run, command, tmp_path):
    saved = read_yaml(digits_run.folder / "config.yaml")
    assert saved["model"]["init_args"]["network"]["init_args"]["channels"] == 1
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["betas"] == [0.9, 0.999]
    config = digits_run.folder / "config.yaml"
    status, _, err = command("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "again")
    assert status == 0, err
    first, again = losses(digits_run.folder), losses(tmp_path / "again")
    assert [step for step, _ in first] == [step for step, _ in again]
    assert [value for _, value in again] == pytest.approx([value for _, value in first], rel=1e-5)


def test_fit_refuses_a_folder_that_holds_a_run_and_writes_nothing_over(digits_run, command):
    before = contents(digits_run.folder)
    status, _, err = command("fit", "--config", digits_run.folder / "config.yaml")
    assert status == 2
    assert err.startswith("error: ")
    assert "--ckpt_path last" in err
    assert contents(digits_run.folder) == before


def test_fit_goes_on_from_the_last_checkpoint(digits_run, command, tmp_path):
    shutil.copytree(digits_run.folder, tmp_path / "run")
    config, root = tmp_path / "run" / "config.yaml", tmp_path / "run"
    options = ("--trainer.default_root_dir", root, "--trainer.max_steps", "6", "--ckpt_path", "last")
    status, out, err = command("fit", "--config", config, *options)
    assert status == 0, err
    assert f"going on after step 4, from {root / 'last.ckpt'}" in out
    assert "changed: trainer.max_steps was 4, is 6" in out
    assert "step 6 of 6" in out
    assert [step for step, _ in losses(root)] == [1, 2, 3, 4, 5, 6]
    assert torch.load(root / "last.ckpt", weights_only=True)["global_step"] == 6
    drawn = contents(digits_run.folder / "samples")
    now = contents(root / "samples")
    new = {"step-0000006.png", "memorisation-0000006.png", "memorisation-0000006-distances.png"}
    assert {path.name for path in set(now) - set(drawn)} == new
    assert {name: now[name] for name in drawn} == drawn


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_validate_test_and_predict_read_a_checkpoint(digits_run, command, tmp_path):
    config, weights = digits_run.folder / "config.yaml", digits_run.folder / "last.ckpt"
    options = ("--config", config, "--ckpt_path", weights, "--trainer.default_root_dir", tmp_path)
    before = contents(digits_run.folder)
    for name in ("validate", "test"):
        status, out, err = command(name, *options)
        assert status == 0, err
        stage = "val" if name == "validate" else "test"
        assert f"{stage}/loss" in out
        assert f"{stage}/fd_digits" in out
    status, _, err = command("predict", *options, "--data.predict_images", "5", "--data.batch_size", "2")
    assert status == 0, err
    predicted = tmp_path / "predictions"
    assert sorted(path.name for path in predicted.iterdir()) == [f"{index:06d}.png" for index in range(5)]
    status, _, err = command(
        "sample", "--ckpt", weights, "--n", "5", "--batch_size", "2", "--out", tmp_path / "sampled"
    )
    assert status == 0, err
    assert (images(predicted, 5) == images(tmp_path / "sampled", 5)).all()
    assert contents(digits_run.folder) == before


def test_validation_of_a_checkpoint_uses_the_averaged_weights(digits_run, command, tmp_path):
    config, weights = digits_run.folder / "config.yaml", digits_run.folder / "last.ckpt"
    options = ("--config", config, "--ckpt_path", weights, "--trainer.default_root_dir", tmp_path)
    status, out, err = command("validate", *options)
    assert status == 0, err
    events = EventAccumulator(str(digits_run.folder)).Reload()
    at_the_end = events.Scalars("val/fd_digits")[-1].value
    assert f"val/fd_digits {at_the_end:.4g} " in out


def on_a_terminal(*arguments):
    """Run the command with a terminal for its output; what came there."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "lightning_ddpm", *(str(word) for word in arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown: list[bytes] = []

    def read():
        while True:
            try:
                shown.append(os.read(ours, 65536))
            except OSError:  # the terminal is closed: the process has ended
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        status = process.wait(timeout=240)
    finally:
        process.kill()
        reader.join(timeout=10)
        os.close(ours)
    return status, b"".join(shown).decode(errors="replace")


@pytest.fixture(scope="module")
def sampled(digits_run, tmp_path_factory):
    """Five images drawn by a process on a terminal, with the trajectory: (folder, what the terminal showed)."""
    folder = tmp_path_factory.mktemp("sampled")
    weights = digits_run.folder / "last.ckpt"
    animation = folder / "animation" / "out.gif"
    status, shown = on_a_terminal(
        *("sample", "--ckpt", weights, "--n", "5", "--batch_size", "5", "--out", folder, "--trajectory", animation)
    )
    assert status == 0, shown
    return folder, shown


def test_sample_writes_numbered_images_and_a_grid_of_them(sampled):
    folder, _ = sampled
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == [*(f"{index:06d}.png" for index in range(5)), "grid.png"]
    drawn = torch.from_numpy(images(folder, 5)).to(torch.uint8)[:, None]
    assert drawn.shape == (5, 1, 8, 8)
    assert (pixels(folder / "grid.png") == arrange_grid(drawn).permute(1, 2, 0).numpy()).all()


def test_sample_draws_with_the_averaged_weights_and_the_checkpoints_own_sampler(sampled, digits_run):
    model = load(digits_run.folder / "last.ckpt", DDPM)
    noise = ImageNoise(0, 0, 5)
    with torch.no_grad():
        x_0 = model.sampler.sample(model.denoiser, noise(torch.empty(5, 1, 8, 8)), noise)
    assert np.abs(to_uint8(x_0)[:, 0].numpy().astype(int) - images(sampled[0], 5)).max() <= 1


def test_sample_on_a_terminal_shows_a_bar_with_its_speed(sampled):
    _, shown = sampled
    assert "━" in shown
    assert "5/5" in shown
    assert "images/s" in shown


def test_the_trajectory_is_an_animation_from_noise_to_the_images(sampled):
    folder, _ = sampled
    with Image.open(folder / "animation" / "out.gif") as animation:
        frames = []
        for index in range(animation.n_frames):
            animation.seek(index)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert len(frames) == 6  # x_T and what each of five steps made of it
    assert np.abs(frames[-1] - pixels(folder / "grid.png")).max() <= 1
    noise = ImageNoise(0, 0, 5)(torch.empty(5, 1, 8, 8))
    assert np.abs(frames[0] - arrange_grid(to_uint8(noise)).permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_sampled_images_do_not_depend_on_the_batch_size(sampled, digits_run, command, tmp_path):
    status, _, err = command(
        *("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "5", "--batch_size", "2", "--out", tmp_path)
    )
    assert status == 0, err
    assert np.abs(images(tmp_path, 5) - images(sampled[0], 5)).max() <= 1


@pytest.mark.parametrize("option", [("--seed", "1"), ("--raw",), ("--steps", "3")], ids=lambda option: option[0])
def test_another_seed_raw_weights_and_fewer_steps_change_the_images(option, sampled, digits_run, command, tmp_path):
    status, out, err = command(
        *("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "5", "--out", tmp_path, *option)
    )
    assert status == 0, err
    assert np.abs(images(tmp_path, 5) - images(sampled[0], 5)).max() > 1
    assert f"{3 if option[0] == '--steps' else 5} network evaluations each" in out
    assert ("raw weights" if option[0] == "--raw" else "EMA weights") in out


@pytest.mark.parametrize(
    ("options", "announced", "spent"),
    [
        (("--sampler", "Heun", "--steps", "3"), "Heun(steps=3", "5"),
        (("--sampler", "DPMSolverPP", "--sampler.steps", "4", "--sampler.eta", "1"), "DPMSolverPP(steps=4, eta=1", "4"),
        (("--sampler", "Ancestral", "--sampler.variance", "FixedSmall"), "Ancestral(variance=FixedSmall", "20"),
        (("--sampler", "AdaptiveODE", "--sampler.tolerance", "0.1"), "as many network evaluations as they take", None),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_any_sampler_can_be_named_and_what_it_spends_is_counted(
    options, announced, spent, sampled, digits_run, command, tmp_path
):
    status, out, err = command(
        *("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "5", "--out", tmp_path, *options)
    )
    assert status == 0, err
    assert announced in out
    counted = re.search(r"grid.png in .*: (\d+) network evaluations each", out)[1]
    assert counted == spent if spent else int(counted) >= 7
    assert np.abs(images(tmp_path, 5) - images(sampled[0], 5)).max() > 1


def test_fit_on_a_terminal_shows_a_bar_with_the_loss(tmp_path):
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    status, shown = on_a_terminal("fit", "--config", config)
    assert status == 0, shown
    assert "━" in shown
    assert "4/4" in shown
    assert "train/loss" in shown


def test_help_comes_at_once_and_names_the_commands():
    started = run(sys.executable, "-X", "importtime", "-m", "lightning_ddpm", "--help")
    assert started.returncode == 0
    for command in ("fit", "sample", "export", "import", "validate", "test", "predict"):
        assert f"\n  {command} " in started.stdout
    imported = {line.split("|")[-1].strip() for line in started.stderr.splitlines()}
    assert "lightning_ddpm.commands.main" in imported
    assert "torch" not in imported


@pytest.mark.parametrize(
    ("name", "option"), [("fit", "--data.batch_size"), ("sample", "--trajectory"), ("validate", "--ckpt_path")]
)
def test_the_help_of_a_command_lists_its_options(name, option, command):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert option in out


def test_the_installed_script_runs_the_same_program():
    script = Path(sysconfig.get_path("scripts")) / "lightning-ddpm"
    if not script.exists():
        pytest.skip("the package is not installed, so its script is not there")
    assert run(script, "--help").stdout == run(sys.executable, "-m", "lightning_ddpm", "--help").stdout


# Bad input: a sentence, a status that is not 0, nothing written


def sentence(status, err):
    """What is said to be wrong: all from the one line that begins with ``error:``."""
    assert status not in (0, None)
    assert "Traceback" not in err
    lines = err.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1, err
    return "\n".join(lines[starts[0] :])


def picture(path, size=(12, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert(mode).save(path)


@pytest.fixture
def refused(command, tmp_path):
    """Fits a changed tiny config, which must be refused before anything is written; the error's sentence."""

    def fit(change=None, *options):
        folder = tmp_path / "run"
        config = tiny_digits(folder)
        if change:
            change(config)
        status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *options)
        said = sentence(status, err)
        assert "run: " not in out  # the summary before the first step
        left = [path.name for path in folder.rglob("*") if not path.name.startswith("events.out.tfevents.")]
        assert left == []
        return said

    return fit


@pytest.fixture
def pictures(tmp_path):
    """A folder of the user's, and what makes the tiny config read it as 8x8 pictures."""
    root = tmp_path / "pictures"
    root.mkdir()

    def use(config, size=8, channels=1):
        init_args = {"channels": channels, "size": size, "holdout": 0.5}
        config["data"]["source"] = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": init_args}
        config["data"].update(root=str(root), batch_size=2)
        config["trainer"]["callbacks"] = config["trainer"]["callbacks"][:1]

    return root, use


def test_an_unknown_key_is_named(refused):
    assert "widht" in refused(None, "--model.network.widht", "8")
    assert "bacth_size" in refused(lambda config: config["data"].update(bacth_size=2))


def test_a_missing_data_folder_is_named(refused, pictures):
    root, use = pictures
    root.rmdir()
    assert str(root) in refused(use)


def test_an_empty_folder_is_named(refused, pictures):
    root, use = pictures
    assert f"{root} holds no images" in refused(use)


def test_an_unreadable_image_is_named(refused, pictures):
    root, use = pictures
    (root / "broken.png").write_bytes(b"this is no picture")
    assert str(root / "broken.png") in refused(use)


def test_images_whose_header_alone_is_whole_are_named(refused, pictures):
    root, use = pictures
    for index in range(4):
        picture(root / f"{index}.png", size=(64, 64))
    whole = (root / "2.png").read_bytes()
    (root / "2.png").write_bytes(whole[: len(whole) // 2])
    assert str(root / "2.png") in refused(use)


def test_an_image_smaller_than_the_crop_is_named_with_both_sizes(refused, pictures):
    root, use = pictures
    for index in range(4):
        picture(root / f"{index}.png", size=(7, 12) if index == 2 else (12, 12))
    said = refused(use)
    assert "7x12" in said
    assert "8x8" in said
    assert str(root / "2.png") in said


def test_a_batch_larger_than_the_data_set_is_refused_with_both_numbers(refused):
    said = refused(None, "--data.batch_size", "1619")
    assert "1619" in said
    assert "1618" in said


def test_a_size_that_cannot_be_halved_is_refused_with_a_size_that_can(refused, pictures):
    root, use = pictures
    for index in range(8):
        picture(root / f"{index}.png")

    def odd(config):
        use(config, size=9)
        config["model"]["init_args"]["network"]["init_args"]["attention"] = []

    said = refused(odd)
    assert "got 9" in said
    assert "size=10" in said


@pytest.mark.parametrize(("name", "given", "told"), [("channels", 1, 3), ("size", 8, 16)])
def test_data_and_network_that_disagree_are_both_named(name, given, told, refused):
    said = refused(None, f"--model.network.{name}", str(told))
    assert f"the data has {name}={given}" in said
    assert f"the network is told {name}={told}" in said


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_weights_of_another_type_than_float32_are_refused(precision, refused):
    said = refused(None, "--trainer.precision", precision)
    assert f"precision {precision} does not keep the weights in float32" in said
    assert "take bf16-mixed or 16-mixed" in said


def test_a_chain_without_steps_is_refused(refused):
    assert "steps=0" in refused(None, "--model.schedule.steps", "0")


@pytest.mark.parametrize(
    ("schedule", "bounds"),
    [
        ("Linear", {"beta_min": 0.0}),
        ("Linear", {"beta_min": -0.1}),
        ("Linear", {"beta_max": 1.0}),
        ("Quadratic", {"beta_min": -0.1}),
        ("Quadratic", {"beta_max": 1.0}),
        ("Sigmoid", {"beta_min": -0.1}),
        ("Sigmoid", {"beta_max": 1.01}),
    ],
    ids=str,
)
def test_a_beta_outside_0_to_1_is_refused(schedule, bounds, refused):
    def change(config):
        class_path = f"lightning_ddpm.diffusion.{schedule}"
        config["model"]["init_args"]["schedule"] = {"class_path": class_path, "init_args": {"steps": 20, **bounds}}

    assert "every beta must lie in (0, 1)" in refused(change)


def schedule(name, prediction=None, **arguments):
    """Makes the tiny config take this schedule, and what the network predicts under it."""

    def change(config):
        init_args = config["model"]["init_args"]
        init_args["schedule"] = {"class_path": f"lightning_ddpm.diffusion.{name}", "init_args": arguments}
        if prediction:
            init_args["parameterization"] = f"lightning_ddpm.diffusion.{prediction}"

    return change


LINEAR = {"class_path": "lightning_ddpm.diffusion.Linear", "init_args": {"steps": 20, "beta_max": 0.3}}


@pytest.fixture
def own_module(monkeypatch, tmp_path):
    """A module of the user's with a function of time, a broken one, and a spacing."""
    lines = (
        "def falling(time):\n    return (1 - time) ** 2",
        "def rising(time):\n    return 1 + time",
        "def short(T, steps):\n    return [T]",
    )
    (tmp_path / "my_schedule.py").write_text("\n\n\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_schedule", raising=False)
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "my_schedule")


@pytest.mark.parametrize(
    "change",
    [
        schedule("ExplicitBetas", betas=[0.05] * 10 + [0.3] * 10),
        schedule("AlphaBarFunction", alpha_bar="my_schedule.falling", steps=20),
        schedule("ZeroTerminalSNR", prediction="Velocity", schedule=LINEAR),
    ],
    ids=["betas", "alpha_bar", "zero"],
)
def test_a_schedule_of_ones_own_trains_and_samples_from_its_checkpoint(change, command, own_module, tmp_path):
    run = tmp_path / "run"
    config = tiny_digits(run)
    change(config)
    config["trainer"]["max_steps"] = 2
    config["model"]["init_args"]["sampler"]["init_args"]["spacing"] = "lightning_ddpm.diffusion.trailing_spacing"
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    assert all(np.isfinite(loss) for _, loss in losses(run))
    model = load(run / "last.ckpt", DDPM)
    assert model.schedule.T == 20
    assert type(model.schedule).__name__ == config["model"]["init_args"]["schedule"]["class_path"].split(".")[-1]
    if type(model.schedule).__name__ == "AlphaBarFunction":
        assert model.schedule.alpha_bar[10].item() == pytest.approx(0.25)
    status, out, err = command("sample", "--ckpt", run / "last.ckpt", "--n", "3", "--out", tmp_path / "images")
    assert status == 0, err
    assert "spacing=trailing" in out
    assert images(tmp_path / "images", 3).std() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (schedule("ExplicitBetas", betas=[]), "empty; give beta_1..beta_T"),
        (schedule("ExplicitBetas", betas=[0.1, 1.0]), "every beta must lie in (0, 1), got beta_2=1"),
        (schedule("ExplicitBetas", betas=[0.1, float("nan")]), "got beta_2=nan"),
        (schedule("ExplicitBetas", betas=[0.1, float("inf")]), "got beta_2=inf"),
        (schedule("ExplicitBetas", betas=[0.1, 1e-18]), "beta_2=1e-18 is too small"),
        (schedule("AlphaBarFunction", alpha_bar="my_schedule.rising", steps=20), "got 1.05 at time 1/20 after 1"),
        (
            schedule("AlphaBarFunction", alpha_bar="my_schedule.falling", max_beta=1.0),
            "max_beta must lie in (0, 1), got 1",
        ),
        (
            schedule("ZeroTerminalSNR", schedule=LINEAR),
            "Epsilon does not determine x_0 there; predict Velocity or X0",
        ),
    ],
    ids=["empty", "one", "nan", "inf", "small", "rising", "cut", "epsilon"],
)
def test_a_bad_schedule_of_ones_own_is_refused_with_the_fix(change, said, refused, own_module):
    assert said in refused(change)


def test_an_alpha_bar_that_does_not_exist_is_named(refused):
    assert "nowhere.to_be_found" in refused(schedule("AlphaBarFunction", alpha_bar="nowhere.to_be_found"))


def test_a_sampler_with_more_steps_than_the_schedule_is_refused(refused):
    said = refused(None, "--model.sampler.steps", "21")
    assert "must lie in 1..20" in said
    assert "got 21" in said


def test_a_callbacks_sampler_with_more_steps_than_the_schedule_is_refused(refused):
    long = {"class_path": "lightning_ddpm.diffusion.DDIM", "init_args": {"steps": 21}}
    for name in ("Evaluation", "SampleGrid"):
        said = refused(lambda config, name=name: callback(config, name).update(sampler=long))
        assert "must lie in 1..20" in said


def test_a_spacing_that_is_too_short_is_refused(refused, own_module):
    said = refused(None, "--model.sampler.spacing", "my_schedule.short")
    assert "5 steps must return 5 increasing timesteps" in said
    assert "got [20] from short" in said


def test_an_average_that_cannot_converge_is_refused(refused):
    said = refused(lambda config: callback(config, "EMA").update(decay=2))
    assert "got 2" in said
    assert "[0, 1)" in said


@pytest.mark.parametrize("folder", ["file/below", "/proc/lightning_ddpm"])
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(folder, refused, tmp_path):
    if folder.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("there is no /proc here")
    (tmp_path / "file").write_text("a regular file")
    target = tmp_path / folder  # an absolute folder stays itself
    said = refused(None, "--trainer.default_root_dir", str(target))
    assert str(target) in said
    assert not target.exists()


def test_missing_inception_weights_offline_are_an_error_with_the_ways_out(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for proxy in ("http_proxy", "https_proxy"):  # nothing listens there: offline on any machine
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    inception = {"class_path": "lightning_ddpm.metrics.Inception"}
    said = refused(lambda config: callback(config, "Evaluation").update(extractor=inception, n=4096))
    for way_out in ("(1)", "(2)", "(3)", "weights_path", str(tmp_path / "torch")):
        assert way_out in said


class Code:
    """Pickled, it makes whoever loads it create a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def with_code(path, mark):
    torch.save({"state_dict": {}, "hyper_parameters": {"_class_path": Code(mark)}}, path)


@pytest.fixture(params=["sample", "validate", "fit"])
def with_checkpoint(request, command, tmp_path):
    """Gives a checkpoint to a command, which must refuse it; the error's sentence."""

    def call(path):
        folder = tmp_path / "run"
        if request.param == "sample":
            status, _, err = command("sample", "--ckpt", path, "--out", folder)
        else:
            config = write_yaml(tmp_path / "config.yaml", tiny_digits(folder))
            status, _, err = command(request.param, "--config", config, "--ckpt_path", path)
        assert not folder.exists() or not contents(folder)
        return sentence(status, err)

    return call


def test_a_missing_checkpoint_is_named(with_checkpoint, tmp_path):
    assert f"there is no checkpoint {tmp_path / 'none.ckpt'}" in with_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_of_another_program_is_refused(with_checkpoint, tmp_path):
    torch.save({"model": torch.zeros(3)}, tmp_path / "other.ckpt")
    assert "another program" in with_checkpoint(tmp_path / "other.ckpt")


def test_a_file_that_is_no_checkpoint_is_refused(with_checkpoint, tmp_path):
    (tmp_path / "text.ckpt").write_text("Dear reader,")
    assert str(tmp_path / "text.ckpt") in with_checkpoint(tmp_path / "text.ckpt")


def test_code_in_a_checkpoint_is_refused_and_does_not_run(with_checkpoint, tmp_path):
    path, mark = tmp_path / "code.ckpt", tmp_path / "it-ran"
    with_code(path, mark)
    said = with_checkpoint(path)
    assert str(path) in said
    assert "could run a program" in said
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the same file does run where nobody looks: the test tests something
    assert mark.exists()


def test_a_damaged_checkpoint_is_refused(with_checkpoint, digits_run, tmp_path):
    whole = (digits_run.folder / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert str(tmp_path / "half.ckpt") in with_checkpoint(tmp_path / "half.ckpt")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--n", "0"), "--n must be at least 1, got 0"),
        (("--n", "-3"), "--n must be at least 1, got -3"),
        (("--batch_size", "0"), "--batch_size must be at least 1, got 0"),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--steps", "21"), "1..20 (the schedule's T), got 21"),
        (("--sampler", "Heun", "--steps", "21"), "1..20 (the schedule's T), got 21"),
        (
            ("--sampler", "Hoen"),
            "no such sampler, or it has no such option; there are AdaptiveODE, Ancestral, DDIM, DPM",
        ),
        (("--sampler", "Heun", "--sampler.eta", "1"), "it has no such option; there are"),
        (("--sampler", "Ancestral"), "the sampler needs --sampler.variance"),
        (("--sampler", "AdaptiveODE", "--steps", "3"), "AdaptiveODE takes no --steps"),
        (("--sampler", "DDIM", "--sampler.eta", "2"), "eta must lie in [0, 1], got 2"),
        (("--n", "five"), "five"),
        (("--sample", "Heun"), "--sample"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_numbers_of_images_and_steps_that_make_no_sense_are_refused(options, named, digits_run, command, tmp_path):
    out = tmp_path / "out"
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--out", out, *options)
    assert named in sentence(status, err)
    assert not out.exists()


def test_sampling_into_a_folder_that_cannot_be_written_is_refused(digits_run, command, tmp_path):
    (tmp_path / "file").write_text("a regular file")
    out = tmp_path / "file" / "below"
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--out", out)
    assert str(out) in sentence(status, err)


def test_sampling_over_a_larger_set_is_refused(digits_run, command, tmp_path):
    picture(tmp_path / "000007.png")
    before = contents(tmp_path)
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "3", "--out", tmp_path)
    assert "000007.png" in sentence(status, err)
    assert contents(tmp_path) == before


def test_a_checkpoint_without_averaged_weights_has_no_raw_ones_beside_them(digits_run, command, tmp_path):
    checkpoint = torch.load(digits_run.folder / "last.ckpt", weights_only=True)
    del checkpoint["current_model_state"], checkpoint["sha256"]
    torch.save(checkpoint, tmp_path / "stripped.ckpt")
    status, _, err = command("sample", "--ckpt", tmp_path / "stripped.ckpt", "--raw", "--out", tmp_path / "out")
    assert "--raw" in sentence(status, err)


def test_a_classifier_cannot_be_sampled(command, tmp_path):
    config = read_yaml(REPOSITORY / "configs" / "digits_features.yaml")
    config["trainer"].update(
        default_root_dir=str(tmp_path / "run"), accelerator="cpu", max_steps=1, log_every_n_steps=1
    )
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    weights = tmp_path / "run" / "last.ckpt"
    status, _, err = command("sample", "--ckpt", weights, "--out", tmp_path / "out")
    said = sentence(status, err)
    assert "Classifier" in said
    assert "DDPM" in said
    assert not (tmp_path / "out").exists()


def test_weights_are_asked_for_where_they_are_needed(command, tmp_path):
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    status, _, err = command("validate", "--config", config)
    assert "--ckpt_path" in sentence(status, err)


def test_an_unknown_command_is_named():
    ended = ddpm("smaple", "--n", "5")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "smaple" in sentence(ended.returncode, ended.stderr)


def test_a_process_given_bad_input_ends_with_a_sentence_and_a_status(tmp_path):
    options = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.max_stepps", "4")
    ended = ddpm("fit", "--config", "configs/digits.yaml", *options)
    assert "max_stepps" in sentence(ended.returncode, ended.stderr)
    assert not (tmp_path / "run").exists()


def test_a_missing_config_is_named(command, tmp_path):
    status, _, err = command("fit", "--config", tmp_path / "nothing.yaml")
    assert str(tmp_path / "nothing.yaml") in sentence(status, err)
