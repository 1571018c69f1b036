"""How often a checkpoint is copied, hashed and written: once, also where best.ckpt and last.ckpt are equal."""

import collections
import hashlib
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import content
from helpers.fake_gpu import GPU, fake_gpu
from helpers.tiny import quiet_trainer, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ddpm.callbacks import EMA, Checkpoints
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.checkpoint import DIGEST_KEY, link_checkpoint, read_checkpoint, write_checkpoint
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_content
from lightning_ddpm.utils.torch_files import copy_to_host, read_torch_file


def count_calls(monkeypatch: pytest.MonkeyPatch, *functions: tuple[Any, str]) -> dict[str, int]:
    """Count the calls of functions from now on."""
    counts: dict[str, int] = collections.Counter()

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return counted

    for owner, name in functions:
        monkeypatch.setattr(owner, name, count(name, getattr(owner, name)))
    return counts


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that does not describe its model, as those of the command line do."""
    return read_torch_file(path, "a checkpoint")  # type: ignore[no-any-return]


def fit(folder: Path) -> None:
    """Train four steps with a validation after every second one, whose loss is always the best so far."""
    trainer = quiet_trainer(
        folder,
        callbacks=[EMA(0.5), Improving(every_n_steps=2, monitor="val/loss")],
        enable_checkpointing=True,
        plugins=[DurableCheckpointIO()],
        max_steps=4,
        val_check_interval=2,
        limit_val_batches=1,
    )
    trainer.fit(tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16))


class Improving(Checkpoints):
    """Takes every loss for the best so far."""

    def _keep_best(self, trainer: Any) -> bool:
        self.best = float("inf")
        return super()._keep_best(trainer)


def test_a_checkpoint_that_is_both_best_and_last_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DurableCheckpointIO, "link_checkpoint", lambda *_: False)  # as before there were links
        apart = count_calls(patch, (torch, "save"), (os, "fsync"))
        fit(tmp_path / "apart")
    linked = count_calls(monkeypatch, (torch, "save"), (os, "fsync"))
    fit(tmp_path / "linked")
    # on_train_epoch_end of max_steps keeps the best once more, apart from any last.ckpt
    assert (apart["save"], linked["save"]) == (5, 3)
    assert apart["fsync"] - linked["fsync"] == 2, "the content of each file that is not written"
    for folder in ("apart", "linked"):
        files = {path.name: read(path) for path in (tmp_path / folder).glob("*.ckpt")}
        steps = {name: each["global_step"] for name, each in files.items()}
        assert steps == {"last.ckpt": 4, "last-previous.ckpt": 2, "best.ckpt": 4, "best-previous.ckpt": 4}
        assert hash_content(files["last.ckpt"]) == hash_content(files["best-previous.ckpt"])
    assert hash_content(read(tmp_path / "apart" / "last.ckpt")) == hash_content(files["last.ckpt"])


def test_replacing_one_of_two_linked_checkpoints_leaves_the_other(tmp_path: Path) -> None:
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    write_checkpoint(last, content(0))
    write_checkpoint(best, content(1))
    link_checkpoint(last, best)
    assert last.samefile(best)
    write_checkpoint(last, content(2))
    write_checkpoint(last, content(3))
    steps = {each.name: read_checkpoint(each)["global_step"] for each in tmp_path.glob("*.ckpt")}
    assert steps == {"best.ckpt": 1, "last.ckpt": 3, "last-previous.ckpt": 2}
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(steps), "nothing temporary is left"


def test_a_file_system_without_hard_links_gets_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fit(tmp_path)
    assert not (tmp_path / "last.ckpt").samefile(tmp_path / "best.ckpt")
    assert [read(tmp_path / f"{name}.ckpt")["global_step"] for name in ("last", "best")] == [4, 4]
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_linked_checkpoints_are_whole_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    best, last, step, before = tmp_path / "best.ckpt", tmp_path / "last.ckpt", 0, 0
    write_checkpoint(best, content(0))
    link_checkpoint(last, best)
    for kill in range(12):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                while True:
                    step += 1
                    write_checkpoint(best, content(step))
                    os.write(writer, b".")
                    link_checkpoint(last, best)
                    os.write(writer, b".")
            finally:
                os._exit(1)
        os.read(reader, 1)
        for _ in range(kill * 200):
            pass  # another moment of the writer's work each time
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        found = [read_checkpoint(each)["global_step"] for each in (best, last)]
        assert found[0] > step
        assert before <= found[1] <= found[0]
        step, before = found
    assert before > 1, "nothing was linked between the kills"


@pytest.mark.parametrize("place", [2, 40, 0.3, 0.7, 0.999, -100, -73, -72, -71, -40, -1])
def test_a_changed_bit_anywhere_in_a_checkpoint_is_refused(tmp_path: Path, place: float) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, content(1))
    whole = bytearray(path.read_bytes())
    whole[int(place * len(whole)) if 0 < place < 1 else int(place)] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"last\.ckpt is (damaged|refused)"):
        read_checkpoint(path)


@pytest.mark.parametrize("lost", [1, 40, 71, 72, 1000])
def test_a_checkpoint_without_its_end_is_refused(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, content(1))
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UserError, match=r"last\.ckpt is (damaged|refused)"):
        read_checkpoint(path)


def test_the_digest_is_the_comment_of_an_archive_that_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, content(5))
    seal = zipfile.ZipFile(path).comment
    whole = path.read_bytes()
    assert seal == b"sha256 " + hashlib.sha256(whole[: -len(seal) - 2] + bytes(2)).hexdigest().encode()
    assert torch.load(path, weights_only=True)["global_step"] == 5
    assert zipfile.ZipFile(path).testzip() is None


def test_the_digest_of_earlier_versions_is_still_compared(tmp_path: Path) -> None:
    path, earlier = tmp_path / "last.ckpt", content(1)
    torch.save({**earlier, DIGEST_KEY: hash_content(earlier)}, path)
    assert read_checkpoint(path).keys() == earlier.keys()
    torch.save({**earlier, "global_step": 2, DIGEST_KEY: hash_content(earlier)}, path)
    with pytest.raises(UserError, match="is damaged, or was changed"):
        read_checkpoint(path)


class CountCopies(TorchDispatchMode):
    """Counts the copies from the fake GPU, by their operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        if len({each.device.type for each in tensors}) == 2 or func is torch.ops.aten._to_copy.default:
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_every_tensor_is_copied_from_a_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu():
        waits = count_calls(monkeypatch, (torch.cuda, "synchronize"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.__setitem__("synchronize", 1))
        empty = torch.empty
        pinned: list[bool] = []

        def make(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            pinned.append(pin_memory)
            return empty(*shape, **options)  # pinned memory needs a driver

        monkeypatch.setattr(torch, "empty", make)
        weight = empty(30, 20, device=GPU)
        state = {"weight": weight, "tied": weight.T, "half": empty(7, dtype=torch.bfloat16, device=GPU)}
        with CountCopies() as copies:
            copied = copy_to_host({"state_dict": state, "list": [(empty(3, device=GPU), 1, None)], "step": 1})
    assert copies.counts == {"aten::copy_": 3}
    assert pinned.count(True) == 3
    assert waits["synchronize"] == 1
    tied, halves = copied["state_dict"]["tied"], copied["state_dict"]["half"]
    assert (tied.shape, tied.stride(), tied.device.type) == ((20, 30), (1, 20), "cpu")
    assert tied.untyped_storage()._cdata == copied["state_dict"]["weight"].untyped_storage()._cdata
    assert (halves.dtype, halves.shape) == (torch.bfloat16, (7,))
    assert copied["list"][0][1:] == (1, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_on_a_gpu_is_copied_bit_by_bit(tmp_path: Path) -> None:
    weight = torch.randn(300, 20, device="cuda")
    state = {"weight": weight, "tied": weight.T, "part": weight[3:5], "half": weight.bfloat16()}
    copied = copy_to_host(state)
    assert {name: each.is_pinned() for name, each in copied.items()} == dict.fromkeys(state, True)
    for name, each in state.items():
        assert torch.equal(copied[name], each.cpu()), name
    write_checkpoint(tmp_path / "last.ckpt", {**content(1), "state_dict": state})
    assert torch.equal(read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["tied"], weight.T.cpu())


def test_a_state_on_the_cpu_is_not_copied() -> None:
    state = tiny_model().state_dict()
    copied = copy_to_host(state)
    assert copied._metadata == state._metadata  # type: ignore[attr-defined]
    assert all(copied[name] is each for name, each in state.items())
