"""Two processes on the CPU train, evaluate and sample as one process does."""

import io
import json
import math
import re

import numpy as np
import pytest
from helpers.command_line import REPOSITORY, TWO, callback, ddpm, tiny_digits, write_yaml
from helpers.rank_spies import weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

METRICS = ("fd_digits", "kd_digits", "precision_digits", "recall_digits", "classifier_score_digits")


def watched(folder):
    """Return the config of the tiny run, with spies that write into ``folder``."""
    config = tiny_digits(folder / "run")
    config["trainer"]["callbacks"].append(
        {"class_path": "helpers.rank_spies.RankSpy", "init_args": {"folder": str(folder)}}
    )
    watched_digits = {"class_path": "helpers.rank_spies.WatchedDigits", "init_args": {"folder": str(folder / "source")}}
    config["data"].update(source=watched_digits, batch_size=8)
    return config


def seen(folder, rank):
    return json.loads((folder / f"rank-{rank}.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train four steps on two ranks; return the folder."""
    folder = tmp_path_factory.mktemp("two-ranks")
    config = write_yaml(folder / "config.yaml", watched(folder))
    ended = ddpm("fit", "--config", config, *TWO, PYTHONPATH=REPOSITORY / "tests")
    assert ended.returncode == 0, ended.stderr
    (folder / "out.txt").write_text(ended.stdout)
    return folder


def test_weights_and_average_are_equal_on_both_ranks_and_in_the_checkpoint(trained):
    first, second = seen(trained, 0), seen(trained, 1)
    assert first["process"] != second["process"]
    assert first["raw"] == second["raw"]
    assert first["ema"] == second["ema"]
    assert first["raw"] != first["ema"]
    assert weights(trained / "run" / "last.ckpt") == {"raw": first["raw"], "ema": first["ema"]}


@pytest.mark.slow
def test_a_step_exchanges_gradients_and_requests_to_stop_and_nothing_else(tmp_path):
    config = watched(tmp_path)
    config["trainer"].update(max_steps=8, log_every_n_steps=100, val_check_interval=100, callbacks=[])
    for name, arguments in (("callbacks.EMA", {}), ("callbacks.Checkpoints", {"every_n_steps": 100})):
        config["trainer"]["callbacks"].append({"class_path": f"lightning_ddpm.{name}", "init_args": arguments})
    spy = {"class_path": "helpers.rank_spies.ExchangeSpy", "init_args": {"folder": str(tmp_path)}}
    config["trainer"]["callbacks"].append(spy)
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *TWO, PYTHONPATH=REPOSITORY / "tests")
    assert ended.returncode == 0, ended.stderr
    for rank in (0, 1):
        counts = json.loads((tmp_path / f"exchanges-{rank}.json").read_text())
        assert counts == {"c10d::allreduce_": 2 * 4}, "one of gradients and one of requests in each of 4 steps"


def test_images_steps_and_noise_differ_between_the_ranks(trained):
    first, second = seen(trained, 0), seen(trained, 1)
    assert first["images"] != second["images"]
    assert first["t"] != second["t"]
    assert abs(correlation(first["eps"], second["eps"])) < 0.6  # of 32 pairs of independent numbers, 3.4 sigma
    for each in (first, second):
        assert 0.5 < sum(eps**2 for eps in each["eps"]) / 32 < 1.9  # the recorded values are the noise


def correlation(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_data_is_fetched_by_the_first_rank_only_and_opened_by_both(trained):
    prepared = [path.name for path in (trained / "source").glob("prepare-*")]
    assert prepared == [f"prepare-{seen(trained, 0)['process']}"]
    opened = {path.name for path in (trained / "source").glob("open-*")}
    assert opened == {f"open-{seen(trained, rank)['process']}" for rank in (0, 1)}


def test_the_summary_is_printed_once_with_the_global_batch_size(trained):
    out = (trained / "out.txt").read_text()
    assert out.count("device: 2 x cpu") == 1
    assert out.count("4 steps of 16 images, 102 steps per epoch") == 1
    assert out.count("step 4: val/fd_digits") == 1
    assert seen(trained, 0)["metrics"]["val/fd_digits"] == seen(trained, 1)["metrics"]["val/fd_digits"]


@pytest.mark.slow
def test_an_evaluation_on_two_ranks_equals_that_of_one_process(trained, command, tmp_path, monkeypatch):
    values = {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        config = watched(folder)
        callback(config, "Evaluation").update(n=101, batch_size=16)  # seven batches, or eight smaller ones
        arguments = ("validate", "--config", write_yaml(folder / "config.yaml", config))
        arguments = (*arguments, "--ckpt_path", trained / "run" / "last.ckpt")
        monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(folder / "cache"))  # each computes the reference statistics
        status, err = alone(command, *arguments) if world_size == 1 else together(*arguments, *TWO)
        assert status == 0, err
        assert len(list((folder / "cache").rglob("fd_digits-*.npz"))) == 1
        for rank in range(world_size):
            values[world_size, rank] = seen(folder, rank)["metrics"]["val/fd_digits"]
    assert values[2, 0] == values[2, 1]
    assert values[2, 0] == pytest.approx(values[1, 0], rel=1e-6)


@pytest.mark.slow
def test_all_ranks_skip_or_run_an_evaluation_as_the_first_rank_decides(tmp_path):
    config = watched(tmp_path)
    config["model"]["init_args"]["optimizer"]["init_args"].update(lr=0.0)
    full = callback(config, "Evaluation")
    cheap = full | {"every_n_steps": 1, "max_share": 1.0, "metrics": ["fid", "kid", "pr", "is"]}
    del full["every_n_steps"]
    config["trainer"]["callbacks"] += [
        {"class_path": "helpers.rank_spies.RankClock"},
        {"class_path": "lightning_ddpm.callbacks.Evaluation", "init_args": cheap},
    ]
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *TWO, PYTHONPATH=REPOSITORY / "tests")
    assert ended.returncode == 0, ended.stderr
    assert [int(step) for step in re.findall(r"step (\d): evaluation skipped", ended.stdout)] == [4]
    assert ended.stdout.count("step 4: final/fd_digits") == 1
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    first, second = (seen(tmp_path, rank)["metrics"] for rank in (0, 1))
    for name in METRICS:
        logged = [(event.step, event.value) for event in events.Scalars(f"val/{name}")]
        constant = pytest.approx(logged[0][1], rel=1e-6)  # as the weights are
        assert logged == [(step, constant) for step in (1, 2, 3)]
        assert first[f"val/{name}"] == second[f"val/{name}"] == logged[-1][1]
    assert first["final/fd_digits"] == second["final/fd_digits"] == pytest.approx(first["val/fd_digits"], rel=1e-6)


@pytest.mark.slow
def test_bits_per_dim_and_nearest_images_on_two_ranks_equal_those_of_one_process(trained, command, tmp_path):
    records, files = {}, {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        config = watched(folder)
        settings = {"n": 101, "batch_size": 13}  # eight batches: each rank has four of them, unchanged
        config["trainer"]["callbacks"].append(
            {"class_path": "lightning_ddpm.callbacks.BitsPerDim", "init_args": settings}
        )
        callback(config, "Memorisation").update(n=101, shown=20, batch_size=13)  # both ranks have some to show
        arguments = ("test", "--config", write_yaml(folder / "config.yaml", config))
        arguments = (*arguments, "--ckpt_path", trained / "run" / "last.ckpt")
        status, err = alone(command, *arguments) if world_size == 1 else together(*arguments, *TWO)
        assert status == 0, err
        records[world_size] = [seen(folder, rank) for rank in range(world_size)]
        files[world_size] = {path.name: path.read_bytes() for path in (folder / "run" / "samples").iterdir()}
    one, (first, second) = records[1][0], records[2]
    for name in ("bits_per_dim", "bits_per_dim_unclipped"):
        assert one[name][0] == 101
        assert len(one[name]) == 4 + 20
        assert first[name] == second[name] == pytest.approx(one[name], rel=1e-9)
    assert len(one["proximity"][0]) == len(one["proximity"][2]) == 101
    assert first["proximity"] == second["proximity"] == one["proximity"]
    shares = [each["metrics"]["test/memorisation_digits"] for each in (one, first, second)]
    assert shares[0] == shares[1] == shares[2]
    assert set(files[1]) == {"memorisation-test.png", "memorisation-test-distances.png"}
    assert files[1] == files[2]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Sample 1,001 digits of the shipped model in one process; return the files' contents by name."""
    return sample_digits(tmp_path_factory.mktemp("sampled"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3])
def test_several_ranks_sample_the_images_of_one(world_size, sampled, tmp_path):
    assert len(sampled) == 1001 + len({"grid.png", "set.json"})
    assert sample_digits(tmp_path, world_size) == sampled


@pytest.mark.slow
def test_the_batch_size_changes_a_sampled_image_by_at_most_one_gray_level(sampled, tmp_path):
    small = sample_digits(tmp_path, 1, batch_size=7)
    numbered = [name for name in sampled if name[0] == "0"]
    one, other = (
        np.stack([np.asarray(Image.open(io.BytesIO(each[name]))) for name in numbered]) for each in (sampled, small)
    )
    assert one.shape == (1001, 8, 8)
    assert np.abs(one.astype(int) - other).max() <= 1


def sample_digits(folder, world_size, batch_size=64):
    """Sample the shipped model's images on some ranks; return the files' contents by name.

    Ten steps are taken, because two would magnify rounding errors to two gray levels in one pixel of 64,064.
    """
    options = ("--n", 1001, "--steps", 10, "--seed", 7, "--batch_size", batch_size, "--accelerator", "cpu")
    ckpt = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
    status, err = together("sample", "--ckpt", ckpt, *options, "--devices", world_size, "--out", folder / "images")
    assert status == 0, err
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def alone(command, *arguments):
    """Run a command in this process; return its status and errors."""
    status, _, err = command(*arguments)
    return status, err


def together(*arguments):
    """Run a command in other processes; return their status and errors."""
    ended = ddpm(*arguments, PYTHONPATH=REPOSITORY / "tests")
    return ended.returncode, ended.stderr
