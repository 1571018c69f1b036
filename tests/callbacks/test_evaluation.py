"""Evaluation and SampleGrid: when they run, what they log, and that they do not change training."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.fits import events, fit, tensorboard
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_ddpm.callbacks import EMA, Checkpoints, Evaluation, SampleGrid
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.metrics import DigitsFeatures, FrechetDistance, ModuleFeatures
from lightning_ddpm.metrics.scores import compute_inception_score, compute_kernel_distance, compute_precision_recall
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

NAME = "val/fd_digits"


def evaluation(**arguments: Any) -> Evaluation:
    return Evaluation(DigitsFeatures(), **({"n": 70, "sampler": DDIM(steps=2), "batch_size": 32} | arguments))


def compute_distance(model: DDPM, n: int = 70) -> float:
    """Compute the distance of the model's images to all training images without the callback."""
    data = ImageDataModule(Digits()).train
    distance = FrechetDistance(DigitsFeatures(), torch.device("cpu"))
    distance.extractor.load()
    distance.set_reference(data, Ranks(), lambda batches, total: (batch for _, batch in batches))
    for _, pixels in generate_batches(model, SampleRequest(n, batch_size=32, sampler=DDIM(steps=2))):
        distance.update(pixels)
    return distance.compute()


class Run(NamedTuple):
    """A run of eight batches in four steps, evaluated every second step, and what it recorded."""

    folder: Path
    recorded: "Recorder"
    events: EventAccumulator


class Recorder(Callback):
    """Records the metric that callbacks get at the end of every batch, and a checkpoint of each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: list[float | None] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        value = trainer.callback_metrics.get(NAME)
        self.values.append(None if value is None else float(value))
        assert pl_module.training
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    fit(
        folder / "run",
        [EMA(0.5), evaluation(every_n_steps=2), SampleGrid(n=9, every_n_steps=2), recorder := Recorder(folder)],
        logger=tensorboard(folder),
        accumulate_grad_batches=2,
        num_sanity_val_steps=1,
        limit_val_batches=1,
        val_check_interval=4,
    )
    return Run(folder, recorder, events(folder))


def test_an_evaluation_runs_once_at_each_of_its_steps_and_not_in_the_sanity_check(run: Run) -> None:
    assert [event.step for event in run.events.Scalars(NAME)] == [2, 4]


def test_tensorboard_and_callbacks_get_the_same_metric(run: Run) -> None:
    at_2, at_4 = (event.value for event in run.events.Scalars(NAME))
    assert run.recorded.values[:3] == [None, None, None]
    assert run.recorded.values[3] == pytest.approx(at_2)
    assert run.recorded.values[-1] == pytest.approx(at_4)
    assert at_2 != at_4


@pytest.mark.parametrize("step", [2, 4])
def test_the_metric_is_the_distance_of_images_by_the_averaged_weights(run: Run, step: int) -> None:
    checkpoint = torch.load(run.folder / f"step-{step}.ckpt", weights_only=True)
    model = tiny_model()
    model.load_state_dict(checkpoint["state_dict"])
    logged = {event.step: event.value for event in run.events.Scalars(NAME)}
    assert logged[step] == pytest.approx(compute_distance(model), rel=1e-4)
    model.load_state_dict(checkpoint["current_model_state"])
    assert logged[step] != pytest.approx(compute_distance(model), rel=1e-3)


def test_the_protocol_is_logged_with_the_metric(run: Run) -> None:
    (event,) = run.events.Tensors(f"{NAME}/protocol/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "n=70" in text
    assert "DDIM(steps=2" in text
    assert DigitsFeatures.expected[:12] in text
    assert "1618 images" in text


def test_the_grid_shows_images_by_the_averaged_weights_in_a_png_and_in_tensorboard(run: Run) -> None:
    samples = run.folder / "run" / "samples"
    assert sorted(path.name for path in samples.iterdir()) == ["step-0000002.png", "step-0000004.png"]
    assert [event.step for event in run.events.Images("samples")] == [2, 4]
    model = tiny_model()
    for step in (2, 4):
        model.load_state_dict(torch.load(run.folder / f"step-{step}.ckpt", weights_only=True)["state_dict"])
        expected = (
            arrange_grid(torch.cat([pixels for _, pixels in generate_batches(model, SampleRequest(9))]))
            .permute(1, 2, 0)
            .numpy()
        )
        assert np.array_equal(np.array(Image.open(samples / f"step-{step:07d}.png")), expected)


def test_the_order_of_callbacks_does_not_change_the_metric(tmp_path: Path) -> None:
    first = fit(tmp_path, [EMA(0.5), evaluation(every_n_steps=2)])
    last = fit(tmp_path, [evaluation(every_n_steps=2), EMA(0.5)])
    assert float(first.callback_metrics[NAME]) == pytest.approx(float(last.callback_metrics[NAME]), rel=1e-6)


def test_evaluations_and_grids_do_not_change_training(tmp_path: Path) -> None:
    with_them, without = tiny_model(), tiny_model()
    fit(tmp_path, [evaluation(every_n_steps=1), SampleGrid(n=4, every_n_steps=1)], with_them)
    fit(tmp_path, [], without)
    assert same(weights(with_them), weights(without))
    assert not same(weights(without), weights(tiny_model()))


def test_every_evaluation_and_grid_starts_from_the_same_noise(tmp_path: Path) -> None:
    frozen = tiny_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    other = SampleGrid(n=4, every_n_steps=2, seed=1)
    fit(
        tmp_path / "a",
        [SampleGrid(n=4, every_n_steps=2), evaluation(every_n_steps=2)],
        frozen,
        logger=tensorboard(tmp_path),
    )
    fit(tmp_path / "b", [other], frozen)
    first, second = ((tmp_path / "a" / "samples" / f"step-000000{step}.png").read_bytes() for step in (2, 4))
    assert first == second
    assert first != (tmp_path / "b" / "samples" / "step-0000002.png").read_bytes()
    assert len({event.value for event in events(tmp_path).Scalars(NAME)}) == 1


def test_an_interval_of_epochs_runs_at_the_end_of_epochs(tmp_path: Path) -> None:
    callbacks = [evaluation(every_n_epochs=2), SampleGrid(n=4, every_n_epochs=2)]
    fit(tmp_path, callbacks, logger=tensorboard(tmp_path), max_steps=-1, max_epochs=5, limit_train_batches=3)
    assert [event.step for event in events(tmp_path).Scalars(NAME)] == [6, 12]
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == ["step-0000006.png", "step-0000012.png"]


def test_a_resumed_run_does_not_repeat_the_last_evaluation(tmp_path: Path) -> None:
    fit(tmp_path / "a", []).save_checkpoint(path := tmp_path / "four.ckpt")
    trainer = quiet_trainer(
        tmp_path,
        callbacks=[evaluation(every_n_steps=2)],
        max_steps=6,
        logger=tensorboard(tmp_path),
        limit_train_batches=4,
    )
    trainer.fit(tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16), ckpt_path=path)
    assert [event.step for event in events(tmp_path).Scalars(NAME)] == [6]


@pytest.mark.parametrize(("name", "best_of"), [(NAME, min), ("val/classifier_score_digits", max)])
def test_the_monitored_metric_selects_the_best_checkpoint(
    tmp_path: Path, name: str, best_of: Callable[..., Any]
) -> None:
    keeper = Checkpoints(every_n_steps=1, monitor=name)
    callbacks = [keeper, evaluation(every_n_steps=1, metrics=["fid", "is"])]
    fit(tmp_path / "run", callbacks, logger=tensorboard(tmp_path), enable_checkpointing=True, max_steps=6)
    values, distances = ({e.step: e.value for e in events(tmp_path).Scalars(each)} for each in (name, NAME))
    assert list(values) == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.ckpt", "last.ckpt"]
    best, last = (torch.load(tmp_path / "run" / f"{each}.ckpt", weights_only=True) for each in ("best", "last"))
    assert best["global_step"] == best_of(values, key=values.__getitem__)
    assert best["callbacks"]["Checkpoints"]["best"] == best_of(values.values())
    assert last["global_step"] == 6
    model = tiny_model()
    model.load_state_dict(best["state_dict"])
    assert compute_distance(model) == pytest.approx(distances[best["global_step"]], rel=1e-4)


class Fading(torch.nn.Module):
    """Features of 8x8 images, which are NaN while ``faded`` is set."""

    faded = False

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * (float("nan") if self.faded else 1.0)


def test_a_metric_that_is_nan_is_logged_and_never_best(tmp_path: Path) -> None:
    class Fade(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            features.faded = trainer.global_step != 3

    extractor = ModuleFeatures(features := Fading(), num_features=4, name="fading")
    callbacks = [
        Fade(),
        Evaluation(extractor, 70, sampler=DDIM(steps=2), every_n_steps=1, metrics=["fid", "kid"]),
        Checkpoints(every_n_steps=1, monitor="val/fd_fading"),
    ]
    fit(tmp_path / "run", callbacks, logger=tensorboard(tmp_path), enable_checkpointing=True, max_steps=5)
    for name in ("val/fd_fading", "val/kd_fading"):
        found = [event.value for event in events(tmp_path).Scalars(name)]
        assert [math.isnan(value) for value in found] == [True, True, False, True, True]
    best = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 3
    assert best["callbacks"]["Checkpoints"]["best"] == events(tmp_path).Scalars("val/fd_fading")[2].value


def test_one_evaluation_computes_all_metrics(tmp_path: Path) -> None:
    frozen = tiny_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    asked = evaluation(every_n_steps=2, metrics=["is", "kid", "fid", "pr"])
    trainer = fit(tmp_path, [asked], frozen, logger=tensorboard(tmp_path))
    extractor = DigitsFeatures()
    extractor.load()
    real = ImageDataModule(Digits()).train
    with torch.no_grad():
        reference = extractor(real.__getitems__(range(len(real)))[0])
        made = torch.cat([pixels for _, pixels in generate_batches(frozen, SampleRequest(70, sampler=DDIM(steps=2)))])
        features, logits = extractor.features_and_logits(made)
    precision, recall = compute_precision_recall(features, reference)
    expected = {
        "fd_digits": compute_distance(frozen),
        "kd_digits": compute_kernel_distance(features, reference).value,
        "precision_digits": precision.value,
        "recall_digits": recall.value,
        "classifier_score_digits": compute_inception_score(logits).value,
    }
    logged = events(tmp_path)
    for name, value in expected.items():
        at = {event.step: event.value for event in logged.Scalars(f"val/{name}")}
        assert at == {2: pytest.approx(value, rel=1e-4), 4: pytest.approx(value, rel=1e-4)}
        assert float(trainer.callback_metrics[f"val/{name}"]) == at[4]
        assert f"val/{name}/protocol/text_summary" in logged.Tags()["tensors"]


class Stopped(DDIM):
    """Raises an exception instead of generating images."""

    def trajectory(self, *_: Any) -> Any:
        raise RuntimeError("stopped in the evaluation")


def test_the_evaluation_at_the_end_follows_the_last_checkpoint_and_is_repeated_after_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(sampler: DDIM, step: int = 0, **arguments: Any) -> None:
        cheap, full = evaluation(every_n_steps=2), evaluation(n=80, sampler=sampler)
        callbacks = [full, EMA(0.5), cheap, Checkpoints(every_n_steps=3, monitor=NAME)]
        fit(tmp_path / "run", callbacks, logger=tensorboard(tmp_path, step), enable_checkpointing=True, **arguments)

    with pytest.raises(RuntimeError, match="stopped in the evaluation"):
        begin(Stopped(steps=2))
    last = tmp_path / "run" / "last.ckpt"
    before, checkpoint = last.read_bytes(), torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == 4
    assert "final/fd_digits" not in events(tmp_path).Tags()["scalars"]
    begin(DDIM(steps=2), 4, ckpt_path=last)
    assert last.read_bytes() == before
    assert [event.step for event in events(tmp_path).Scalars(NAME)] == [2, 4]
    (event,) = events(tmp_path).Scalars("final/fd_digits")
    model = tiny_model()
    model.load_state_dict(checkpoint["state_dict"])
    assert (event.step, event.value) == (4, pytest.approx(compute_distance(model, 80), rel=1e-4))
    out = capsys.readouterr().out
    assert out.count("evaluation at the end: 80 images x 2 network evaluations, about ") == 2
    assert out.count("step 4: final/fd_digits ") == 1


def test_the_evaluation_at_the_end_runs_once_on_the_saved_weights(tmp_path: Path) -> None:
    callbacks = [evaluation(), EMA(0.5), Checkpoints(every_n_steps=2, monitor=NAME)]
    trainer = fit(tmp_path / "run", callbacks, logger=tensorboard(tmp_path), enable_checkpointing=True)
    (event,) = events(tmp_path).Scalars("final/fd_digits")
    assert (event.step, event.value) == (4, float(trainer.callback_metrics["final/fd_digits"]))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]
    model = tiny_model()
    model.load_state_dict(torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"])
    assert event.value == pytest.approx(compute_distance(model), rel=1e-4)
    validator = quiet_trainer(tmp_path, callbacks=[evaluation()], limit_val_batches=1)
    (metrics,) = validator.validate(model, datamodule=ImageDataModule(Digits()), verbose=False)
    assert "val/loss" in metrics
    assert not any("fd_digits" in name for name in metrics)


class Timed(Callback):
    """Records how long the run has taken, before the evaluation that follows it in the list."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.took = time.monotonic() - self.began


@pytest.mark.parametrize("share", [None, 0.2])
def test_evaluations_take_at_most_their_share_of_the_time(
    tmp_path: Path, share: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, [timed := Timed(), asked := evaluation(every_n_steps=1, max_share=share)], max_steps=40)
    seconds, skipped = asked.seconds, capsys.readouterr().out.count("evaluation skipped: with another ")
    assert len(seconds) + skipped == 40
    if share is None:
        assert sum(seconds) / timed.took > 0.3  # so that the other case's limit has an effect
    else:
        assert 2 <= len(seconds) < 40
        unforeseen = max(0, seconds[-1] - max(seconds[:-1]))
        assert sum(seconds) <= share * timed.took + unforeseen + 1e-3


def test_the_first_evaluation_is_skipped_by_its_estimated_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = evaluation(every_n_steps=2, max_share=1e-6)
    trainer = fit(tmp_path, [asked, Checkpoints(every_n_steps=1, monitor=NAME)], enable_checkpointing=True)
    assert (asked.seconds, asked.evaluated_step) == ([], -1)
    assert NAME not in trainer.callback_metrics
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4"]
    assert all(line.endswith("max_share is 1e-06") for line in lines)


def test_without_a_monitor_only_the_last_checkpoint_is_written(tmp_path: Path) -> None:
    fit(tmp_path / "run", [Checkpoints(every_n_steps=3)], enable_checkpointing=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(("command", "name"), [("validate", NAME), ("test", "test/fd_digits")])
def test_validate_and_test_measure_the_given_weights(tmp_path: Path, command: str, name: str) -> None:
    model = tiny_model()
    trainer = quiet_trainer(tmp_path, callbacks=[evaluation(every_n_steps=1)], limit_val_batches=1.0)
    (metrics,) = getattr(trainer, command)(model, datamodule=ImageDataModule(Digits()), verbose=False)
    assert metrics[name] == pytest.approx(compute_distance(model), rel=1e-4)


def test_too_few_images_cause_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="63 images are too few for the covariance of 64 features.*at least 64"):
        fit(tmp_path, [evaluation(n=63, every_n_steps=4)])


def test_the_cost_is_printed_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [evaluation(every_n_steps=4)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("evaluation: 70 images x 2 network evaluations, about ")
    assert any(line.startswith("step 4: val/fd_digits ") for line in lines[1:])


@pytest.mark.parametrize(
    ("kind", "interval"),
    [
        (SampleGrid, {}),
        *(
            (kind, interval)
            for kind in (evaluation, SampleGrid)
            for interval in ({"every_n_steps": 1, "every_n_epochs": 1}, {"every_n_steps": 0}, {"every_n_epochs": -1})
        ),
    ],
)
def test_an_interval_is_one_positive_number(kind: Any, interval: dict[str, int]) -> None:
    with pytest.raises(UserError, match="give either every_n_steps or every_n_epochs, at least 1"):
        kind(**interval)


def test_one_image_is_not_enough() -> None:
    with pytest.raises(UserError, match="at least 2 images in batches of at least 1, got 1 and 32"):
        evaluation(n=1, every_n_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_share": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"max_share": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"max_share": 0.5, "every_n_steps": None}, "max_share limits evaluations at an interval"),
        (
            {"metrics": ["fid", "FID"]},
            "accuracy, spectrum, marginals, got .'fid', 'FID'.",
        ),
        ({"metrics": "fid"}, "one or more of fid, kid, pr, is, accuracy, spectrum, marginals, got 'fid'"),
        ({"metrics": []}, r"one or more of fid, kid, pr, is, accuracy, spectrum, marginals, got \[\]"),
        ({"metrics": ["is"], "n": 9}, "Inception Score .* takes at least 10 images, got 9; leave out 'is'"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluation(**({"every_n_steps": 1} | arguments))
