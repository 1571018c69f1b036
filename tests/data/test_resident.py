"""Training images in the device's memory: the batches, bits and resumption of a loader that reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from helpers.two_epochs import SaveAt
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.data import Digits, ImageDataModule, ImageFolder, MemoryDataset, decode_cache
from lightning_ddpm.data.resident import SHARE, keep_on_device
from lightning_ddpm.utils.errors import UserError

CPU = torch.device("cpu")


class Batches(Callback):
    """Records the batches on the CPU, and the loader's workers."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.workers = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch[0].cpu(), batch[1].cpu()))
        self.workers = trainer.train_dataloader.num_workers


def train(folder: Path, on_device: bool | None, ckpt_path: Path | None = None, **arguments: Any) -> tuple[Batches, Any]:
    """Train with flips into the second epoch; return the batches and the weights."""
    batches, model = Batches(), tiny_model()
    options = {"num_workers": 0} | arguments.pop("data", {})
    data = ImageDataModule(Digits(), batch_size=200, flip=True, on_device=on_device, **options)
    callbacks = [batches, SaveAt(5, folder / "five.ckpt")]
    trainer = quiet_trainer(folder, callbacks=callbacks, **({"max_steps": 12} | arguments))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return batches, weights(model)


def assert_same(one: tuple[Batches, Any], other: tuple[Batches, Any], first: int = 0) -> None:
    assert len(one[0].seen) - first == len(other[0].seen) > 0
    for (images, labels), (same_images, same_labels) in zip(one[0].seen[first:], other[0].seen, strict=True):
        assert images.dtype == same_images.dtype == torch.float32
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert same(one[1], other[1])


def test_batches_and_weights_are_those_of_a_loader_also_in_a_resumed_run(tmp_path: Path) -> None:
    loaded = train(tmp_path, False)
    assert_same(loaded, train(tmp_path, True))
    resumed = train(tmp_path, True, tmp_path / "five.ckpt")
    assert_same(loaded, resumed, first=5)


def test_no_workers_are_started(tmp_path: Path) -> None:
    batches, _ = train(tmp_path, True, data={"num_workers": 2}, max_steps=1)
    assert batches.workers == 0


def test_nothing_is_kept_on_a_cpu_by_default(tmp_path: Path) -> None:
    data = Digits().open(tmp_path, "train")
    assert keep_on_device(data, None, CPU) is None
    assert keep_on_device(data, False, CPU) is None
    assert keep_on_device(data, True, CPU) is not None


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_keeps_what_takes_up_to_an_eighth_of_its_memory(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Digits().open(tmp_path, "train")
    assert isinstance(data, MemoryDataset)
    gpu = type("Properties", (), {"total_memory": int(data.images.nbytes / SHARE) - (not fits)})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert (keep_on_device(data, None, torch.device("cuda", 0)) is not None) == fits
    assert keep_on_device(data, True, torch.device("cuda", 0)) is not None


def test_a_subclass_which_may_change_its_images_is_read_by_a_loader(tmp_path: Path) -> None:
    class Inverted(MemoryDataset):
        def __getitems__(self, indices: Any) -> tuple[Tensor, Tensor]:
            images, labels = super().__getitems__(indices)
            return 255 - images, labels

    data = Inverted(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3))
    assert keep_on_device(data, None, torch.device("cuda", 0)) is None


def test_images_that_are_not_in_memory_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", 0)
    for i in range(4):
        Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = ImageDataModule(ImageFolder(1, 8, holdout=0.25), str(tmp_path), batch_size=2, on_device=True)
    with pytest.raises(UserError, match=r"data\.on_device true needs images that are decoded in memory, and these 3"):
        quiet_trainer(tmp_path, max_steps=1).fit(tiny_model(), datamodule=data)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_on_the_loader_s_batches(tmp_path: Path) -> None:
    loaded, resident = (train(tmp_path, kept, accelerator="gpu")[0] for kept in (False, None))
    for (images, labels), (same_images, same_labels) in zip(loaded.seen, resident.seen, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert resident.workers == 0
