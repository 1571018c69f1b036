"""Real images that are not square are trained on as they are."""

from pathlib import Path

import numpy as np
from helpers.tiny import TINY, quiet_trainer, real_data, tiny_model
from PIL import Image
from pytorch_lightning import Callback

from lightning_ddpm.data import ImageDataModule, ImageFolder
from lightning_ddpm.networks import UNet


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def test_cifar10_cut_to_24x32_keeps_its_pixels_and_trains(tmp_path: Path) -> None:
    cut = []
    for index, path in enumerate(sorted((real_data("cifar10") / "train" / "ship").glob("*.png"))[:64]):
        with Image.open(path) as image:
            cut.append(np.asarray(image.crop((0, 4, 32, 28))))
        Image.fromarray(cut[-1]).save(tmp_path / f"{index:02d}.png")
    data = ImageDataModule(ImageFolder(3, (24, 32), holdout=0.1), root=str(tmp_path), batch_size=16)
    images, _ = data.train.__getitems__(range(len(data.train)))
    assert data.image_shape == (3, 24, 32)
    assert len(images) == 58
    assert {each.tobytes() for each in images.permute(0, 2, 3, 1).numpy()} <= {each.tobytes() for each in cut}
    losses, network = Losses(), UNet(**TINY | {"channels": 3, "size": (24, 32), "attention": ()})
    quiet_trainer(tmp_path, callbacks=[losses], max_steps=30).fit(tiny_model(network=network), datamodule=data)
    assert np.mean(losses.values[-6:]) < 0.8 * np.mean(losses.values[:3])
