"""SampleGrid: the columns of a conditional model's grid."""

from pathlib import Path

import numpy as np
import torch
from helpers.fits import fit
from helpers.tiny import tiny_model, tiny_network
from PIL import Image

from lightning_ddpm.callbacks import SampleGrid
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest


def test_each_class_has_a_column_under_its_name(tmp_path: Path) -> None:
    names = [*map(str, range(10))]
    model = tiny_model(network=tiny_network(classes=10), class_names=names)
    fit(tmp_path, [SampleGrid(n=20, every_n_steps=4)], model)
    request = SampleRequest(20, labels=range(10))
    images = torch.cat([pixels for _, pixels in generate_batches(model, request)])
    expected = arrange_grid(images, columns=10, titles=names).permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open(tmp_path / "samples" / "step-0000004.png")), expected)
