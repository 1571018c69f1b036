"""PostHocEMA: its snapshots give averages of other lengths, also in a run that was resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import fit
from helpers.tiny import weights
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks import EMA, PostHocEMA, checkpoints
from lightning_ddpm.models.power_average import get_share, solve_exponent
from lightning_ddpm.models.snapshots import list_snapshots, reconstruct
from lightning_ddpm.utils.errors import UserError

STEPS = 16


class Save(Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():  # not at the next step's first batch
            trainer.save_checkpoint(self.path)


class KeptFromTheStart(Callback):
    """Averages the weights over one length from the first step on, in float64."""

    def __init__(self, sigma_rel: float) -> None:
        self.gamma, self.average, self.step = solve_exponent(sigma_rel), dict[str, torch.Tensor](), 0
        self.raw: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step, self.raw = trainer.global_step, weights(pl_module)
            share = get_share(self.step, self.gamma)
            before = self.average or self.raw
            self.average = {name: (1 - share) * before[name] + share * w.double() for name, w in self.raw.items()}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return float(sum((first[name].double() - second[name]).square().sum() for name in second)) ** 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KeptFromTheStart, KeptFromTheStart]:
    """A run with snapshots, and what two averages kept from its start are."""
    folder = tmp_path_factory.mktemp("run")
    kept, other = KeptFromTheStart(0.1), KeptFromTheStart(0.15)
    fit(folder, [PostHocEMA(2), kept, other, EMA()], max_steps=STEPS, accumulate_grad_batches=2)
    return folder, kept, other


def test_a_length_that_is_kept_is_exact(run: tuple[Path, KeptFromTheStart, KeptFromTheStart]) -> None:
    folder, kept, _ = run
    found = reconstruct(folder, 0.1)
    assert (found.step, found.snapshots) == (STEPS, STEPS)  # two lengths at every other step
    assert found.weights.keys() == kept.average.keys()
    for name, value in kept.average.items():
        torch.testing.assert_close(found.weights[name], value.float(), rtol=1e-5, atol=1e-6)


def test_another_length_is_that_of_an_average_kept_from_the_start(
    run: tuple[Path, KeptFromTheStart, KeptFromTheStart],
) -> None:
    folder, kept, other = run
    found = reconstruct(folder, 0.15)
    apart = distance(kept.average, other.average)
    assert apart > 0
    assert distance(found.weights, other.average) < 0.05 * apart
    assert distance(found.weights, other.average) < 0.02 * distance(other.raw, other.average)
    assert found.error < 0.05


def test_a_resumed_run_writes_the_same_snapshots(
    run: tuple[Path, KeptFromTheStart, KeptFromTheStart], tmp_path: Path
) -> None:
    path = tmp_path / "five.ckpt"
    fit(tmp_path, [PostHocEMA(2), EMA(), Save(5, path)], max_steps=10, accumulate_grad_batches=2)
    assert [each.step for each in list_snapshots(tmp_path)][-1] == 10
    fit(tmp_path, [PostHocEMA(2), EMA()], max_steps=STEPS, accumulate_grad_batches=2, ckpt_path=path)
    first, second = list_snapshots(run[0]), list_snapshots(tmp_path)
    assert [each.path.name for each in first] == [each.path.name for each in second]
    for one, two in zip(first, second, strict=True):
        assert one.path.read_bytes() == two.path.read_bytes()


def test_a_run_that_is_resumed_from_an_earlier_step_has_no_later_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    fit(tmp_path, [PostHocEMA(1), Save(1, path)], max_steps=3)
    assert {each.step for each in list_snapshots(tmp_path)} == {1, 2, 3}
    fit(tmp_path, [PostHocEMA(1)], max_steps=2, ckpt_path=path)
    assert {each.step for each in list_snapshots(tmp_path)} == {1, 2}


def test_averages_must_begin_with_training_and_keep_their_lengths(tmp_path: Path) -> None:
    without, others = tmp_path / "without.ckpt", tmp_path / "others.ckpt"
    fit(tmp_path / "a", [Save(2, without)], max_steps=2)
    with pytest.raises(UserError, match="averages from the first step on, and the run is resumed after step 2"):
        fit(tmp_path / "a", [PostHocEMA(2)], max_steps=4, ckpt_path=without)
    fit(tmp_path / "b", [PostHocEMA(2), Save(2, others)], max_steps=2)
    with pytest.raises(UserError, match=r"sigma_rels \[0\.05, 0\.2\], and the run that is resumed \[0\.05, 0\.1\]"):
        fit(tmp_path / "b", [PostHocEMA(2, (0.05, 0.2))], max_steps=4, ckpt_path=others)


@pytest.mark.parametrize("sigma_rels", [(), (0.1,), (0.1, 0.1), (0.1, 0.5), (0.1, 1e-9)])
def test_lengths_that_are_no_basis_are_refused(sigma_rels: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="sigma_rel"):
        PostHocEMA(10, sigma_rels)


def test_a_snapshot_of_another_model_or_step_is_refused(
    run: tuple[Path, KeptFromTheStart, KeptFromTheStart], tmp_path: Path
) -> None:
    fit(tmp_path, [PostHocEMA(1)], max_steps=2)
    first = list_snapshots(tmp_path)[0].path
    first.write_bytes(list_snapshots(run[0])[-1].path.read_bytes())
    with pytest.raises(UserError, match="is of another run or step than its name states"):
        reconstruct(tmp_path, 0.1)
    first.write_bytes(b"PK")
    with pytest.raises(UserError, match="is damaged"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(UserError, match="has no snapshot after step 7; it has those of 1, 2"):
        reconstruct(tmp_path, 0.1, 7)


def test_a_checkpoint_is_as_large_as_the_space_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(checkpoints, "check_free_space", lambda folder, size, total: asked.append(size))
    callbacks = [EMA(), PostHocEMA(9), checkpoints.Checkpoints(every_n_steps=9)]
    fit(tmp_path, callbacks, max_steps=1, enable_checkpointing=True)
    assert asked[0] == pytest.approx(
        (tmp_path / "last.ckpt").stat().st_size, rel=0.35
    )  # names and headers are the rest
    weights_of_one = sum(each.numel() * 4 for each in reconstruct(tmp_path, 0.1).weights.values())
    assert asked[0] == pytest.approx(6 * weights_of_one, rel=0.02)
