"""Missing values are no part of the loss, of what a network sees, or of samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import TINY, quiet_trainer, tiny_model, tiny_network
from torch import Tensor

from lightning_ddpm.callbacks import Evaluation, FlowLikelihood
from lightning_ddpm.data import ArrayFile, Digits, GeometricAugmentation, ImageDataModule
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.diffusion import (
    DDIM,
    EDM,
    VLB,
    X0,
    Ancestral,
    ClassifierFree,
    FixedLarge,
    Hybrid,
    LearnedRange,
    MinSNR,
    Simple,
    SimpleWeighted,
    UncertaintyWeighted,
    VarianceExploding,
    Velocity,
    q_sample,
)
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import AugmentationEmbedding, ConcatenatedImage, ConcatenatedMask, DiT, UNet
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError

VALUES = ValueRange("float32", -1.0, 1.0, bounded=False, masked=True)
LAND = torch.zeros(1, 8, 8, dtype=torch.bool)
LAND[:, :3, :5] = True


def masked_model(**arguments) -> DDPM:
    network = tiny_network(conditions=[ConcatenatedMask()])
    return tiny_model(**{"network": network, "values": VALUES} | arguments)


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return images with NaN at other places in each, timesteps and noise."""
    random = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 4, 1, 8, 8, generator=random)
    x_0[torch.rand(x_0.shape, generator=random) < 0.4] = torch.nan
    x_0[3] = x_0[3].nan_to_num()  # one is complete
    return x_0, torch.tensor([1, 7, 13, 20]), eps


@pytest.mark.parametrize("parameterization", [None, X0(), Velocity()])
@pytest.mark.parametrize("kind", ["UNet", "DiT"])
def test_the_loss_is_the_mean_over_the_values_that_are_there(kind: str, parameterization) -> None:
    network = tiny_network(conditions=[ConcatenatedMask()])
    if kind == "DiT":
        network = DiT(1, 8, width=16, depth=1, heads=2, conditions=[ConcatenatedMask()])
    model = masked_model(network=network, parameterization=parameterization).eval()
    images, t, eps = make_batch()
    x_0, condition = model.read_batch((images, torch.full((4,), -1)))
    outputs = []

    def keep(module, inputs, output) -> None:
        output.retain_grad()
        outputs.append(output)

    network.register_forward_hook(keep)
    losses = model.loss(x_0, t, eps, condition)
    losses.sum().backward()
    target = model.parameterization.target(model.schedule, x_0, eps, t)
    for index in range(4):
        valid = ~images[index].isnan().numpy()
        error = (outputs[0][index] - target[index]).detach().double().numpy()[valid]
        assert float(losses[index].detach()) == pytest.approx(float(np.square(error).mean()), rel=1e-5)
        gradient = outputs[0].grad[index].numpy()
        assert (gradient[~valid] == 0).all()
        np.testing.assert_allclose(gradient[valid], 2 * error / valid.sum(), rtol=1e-3, atol=1e-6)


def test_the_loss_does_not_depend_on_the_noise_where_values_are_missing() -> None:
    model = masked_model().eval()
    images, t, eps = make_batch()
    x_0, condition = model.read_batch((images, torch.full((4,), -1)))
    other = torch.where(images.isnan(), 100 * eps.flip(0), eps)
    assert torch.equal(model.loss(x_0, t, eps, condition), model.loss(x_0, t, other, condition))


def test_of_complete_images_it_is_the_loss_without_a_mask() -> None:
    model = masked_model().eval()
    _, t, eps = make_batch()
    x_0, condition = model.read_batch((eps.flip(0), torch.full((4,), -1)))
    x_t = q_sample(model.schedule, x_0, t, eps)
    expected = (model.network(x_t, t) - eps).square().mean((1, 2, 3))  # without a condition nothing is missing yet
    torch.testing.assert_close(model.loss(x_0, t, eps, condition), expected)


def test_weights_of_noise_levels_apply_to_the_masked_loss() -> None:
    images, t, eps = make_batch()
    plain = masked_model().eval()
    x_0, condition = plain.read_batch((images, torch.full((4,), -1)))
    objective = SimpleWeighted(MinSNR())
    weight = objective.output_weight(plain.denoiser, t)
    weighted = masked_model(objective=objective).eval()
    torch.testing.assert_close(weighted.loss(x_0, t, eps, condition), weight * plain.loss(x_0, t, eps, condition))
    uncertain = masked_model(objective=UncertaintyWeighted()).eval()  # u begins at 0
    torch.testing.assert_close(uncertain.loss(x_0, t, eps, condition), plain.loss(x_0, t, eps, condition))


def train(folder: Path, images: Tensor, **arguments) -> DDPM:
    np.save(folder / "train.npy", images.numpy())
    data = ImageDataModule(ArrayFile(nan="mask"), root=str(folder), batch_size=8)
    model = masked_model(values=data.values, **arguments)
    quiet_trainer(folder, max_steps=3).fit(model, datamodule=data)
    return model.eval()


@pytest.mark.parametrize("sampler", [DDIM(4), Ancestral(FixedLarge())], ids=["DDIM", "Ancestral"])
def test_samples_are_nan_where_every_training_image_is_and_independent_of_the_noise_there(
    sampler, tmp_path: Path
) -> None:
    fields = 280 + 5 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = train(tmp_path, fields.masked_fill(LAND, torch.nan))
    assert torch.equal(model.network.conditions[0].valid, ~LAND)
    pixels = generate(model, 6, sampler=sampler)
    assert torch.equal(pixels.isnan(), LAND.expand(6, -1, -1, -1))
    assert pixels[~pixels.isnan()].isfinite().all()
    denoise, x_T, _ = model.prepare_sampling(SampleRequest(2), 0, 2)
    other = torch.where(LAND, x_T.flip(0), x_T)
    with torch.no_grad():
        first, second = (denoise(each, 9) for each in (x_T, other))
    assert torch.equal(first.x_0, second.x_0)
    assert (first.x_0[LAND.expand_as(x_T)] == 0).all()


def test_samples_of_moving_masks_are_complete_and_other_values_are_generated_everywhere(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    fields = 280 + 5 * torch.randn(24, 1, 8, 8, generator=random)
    model = train(tmp_path, fields.masked_fill(torch.rand(fields.shape, generator=random) < 0.5, torch.nan))
    assert model.network.conditions[0].valid.all()
    assert generate(model, 4).isfinite().all()


def test_classes_are_guided_beside_a_mask() -> None:
    network = tiny_network(conditions=[ConcatenatedMask()], classes=3)
    network.conditions[0].measure(~LAND)
    model = masked_model(network=network, class_names=["a", "b", "c"]).eval()
    x_t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    label, t, w = torch.tensor([0, 1, 2]), torch.full((3,), 9), 2.0
    with torch.no_grad():
        denoised = ClassifierFree(w)(model.denoiser, label)(x_t, 9)
        given, hidden = (network(x_t, t, Condition(each)) for each in (label, torch.full((3,), -1)))
        expected = model.denoiser.interpret(x_t, hidden + w * (given - hidden), None, 9)
    torch.testing.assert_close(denoised.x_0, expected.x_0, rtol=1e-4, atol=1e-4)
    assert (denoised.x_0[:, LAND] == 0).all()
    torch.testing.assert_close(q_sample(model.schedule, denoised.x_0, 9, denoised.eps), x_t)


def test_a_mask_beside_an_image_that_is_given() -> None:
    conditions = [ConcatenatedImage(1, 8), ConcatenatedMask()]
    network = tiny_network(conditions=conditions).eval()
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 5])
    condition = Condition(image=torch.randn(2, 1, 8, 8), mask=(~LAND).expand(2, -1, -1, -1))
    other = torch.where(LAND, 7.0, x_t)
    assert torch.equal(network(x_t, t, condition), network(other, t, condition))
    hidden = network(x_t, t, condition.hide())
    assert not torch.equal(hidden, network(x_t, t, condition)), "the image is hidden"
    assert torch.equal(hidden, network(other, t, condition.hide())), "the mask is not"


def test_training_on_another_path_leaves_out_the_same_values(tmp_path: Path) -> None:
    fields = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)).masked_fill(LAND, torch.nan)
    model = train(tmp_path, fields, schedule=VarianceExploding(20), parameterization=EDM(), sampler=DDIM(3))
    assert torch.equal(generate(model, 2).isnan(), LAND.expand(2, -1, -1, -1))


def test_flips_move_the_mask_with_the_image(tmp_path: Path) -> None:
    fields = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)).masked_fill(LAND, torch.nan)
    np.save(tmp_path / "train.npy", fields.numpy())
    data = ImageDataModule(ArrayFile(nan="mask"), root=str(tmp_path), batch_size=23, flip=True)
    seen = []

    class Watched(DDPM):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0].isnan())
            return super().training_step(batch, batch_idx)

    plain = masked_model(values=data.values)
    model = Watched(
        plain.network, plain.schedule, plain.sampler, plain.optimizer, plain.lr_scheduler, values=data.values
    )
    quiet_trainer(tmp_path, max_steps=1).fit(model, datamodule=data)
    lands = {each.numpy().tobytes() for each in seen[0]}
    assert lands == {LAND.numpy().tobytes(), LAND.flip(-1).numpy().tobytes()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": UNet(**TINY)}, "the network is not given where; list lightning_ddpm.networks.ConcatenatedMask"),
        ({"values": None}, "ConcatenatedMask is for data in which values are missing"),
        ({"objective": Hybrid()}, "Hybrid.* counts every value, and the data have missing ones"),
        ({"objective": VLB(LearnedRange())}, "VLB.* counts every value"),
        (
            {
                "network": UNet(**TINY, conditions=[ConcatenatedMask(), AugmentationEmbedding(9)]),
                "augmentations": [GeometricAugmentation(0.1)],
            },
            "model.augmentations transform complete images",
        ),
    ],
)
def test_what_does_not_fit_missing_values_is_refused(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        masked_model(**{"objective": Simple()} | arguments)


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (lambda: Evaluation(None, 4, ["spectrum"], every_n_steps=2), "Evaluation"),
        (lambda: FlowLikelihood(4), "FlowLikelihood"),
    ],
)
def test_measurements_of_complete_images_are_refused_before_training(callback, name: str, tmp_path: Path) -> None:
    fields = torch.randn(24, 1, 8, 8).masked_fill(LAND, torch.nan)
    np.save(tmp_path / "train.npy", fields.numpy())
    data = ImageDataModule(ArrayFile(nan="mask", holdout=0.2), root=str(tmp_path), batch_size=8)
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[callback()], limit_val_batches=1)
    with pytest.raises(UserError, match=f"{name} needs images with a value in every pixel"):
        trainer.fit(masked_model(values=data.values), datamodule=data)


def test_a_model_of_complete_images_is_not_trained_on_missing_values(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", torch.randn(24, 1, 8, 8).masked_fill(LAND, torch.nan).numpy())
    data = ImageDataModule(ArrayFile(nan="mask"), root=str(tmp_path), batch_size=8)
    with pytest.raises(
        UserError, match="the data have NaN for pixels without a value, and DDPM is not trained on such"
    ):
        quiet_trainer(tmp_path, max_steps=1).fit(tiny_model(), datamodule=data)
    assert not ImageDataModule(Digits()).values.masked
