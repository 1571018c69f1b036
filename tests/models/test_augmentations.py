"""Augmentation in training: the network is given what was done, so that generated images are as in the data."""

import pytest
import torch
from helpers.fits import fit
from helpers.tiny import tiny_model, tiny_network
from torch import nn

from lightning_ddpm.data import ColourAugmentation, Digits, GeometricAugmentation
from lightning_ddpm.diffusion import DDIM, Velocity
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate
from lightning_ddpm.networks import AugmentationEmbedding, ConcatenatedImage, DiT, EarlyAugmentationEmbedding
from lightning_ddpm.networks.conditions import Conditions
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError


def test_inverted_training_images_do_not_leak_into_generated_ones(tmp_path) -> None:
    """Half of the images are inverted digits, of black on white; the corners show which they are."""
    inversion = ColourAugmentation(1.0, brightness=0.0, contrast=0.0)
    network = tiny_network(conditions=[AugmentationEmbedding(6)])
    model = tiny_model(network=network, parameterization=Velocity(), augmentations=[inversion])
    fit(tmp_path, [], model, max_steps=80)
    with torch.no_grad():
        generated = generate(model.eval(), 32, sampler=DDIM(5)).float()
        corners = generated[:, 0, :, [0, 7]].mean((1, 2))
        assert (corners < 128).all(), "white on black, as in the data"
        denoise = model.denoiser_for(
            Condition(augmentation=torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]).expand(32, 6))
        )
        noise = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        inverted = DDIM(5).sample(denoise, noise, torch.randn_like)
    assert (inverted[:, 0, :, [0, 7]].mean((1, 2)) > 0).float().mean() > 0.9, "the condition makes the difference"


def test_validation_and_its_loss_see_images_as_they_are(tmp_path, monkeypatch) -> None:
    seen = {True: [], False: []}
    loss = DDPM.loss

    def note(self, x_0, t, eps, condition=None, random=None):
        seen[self.training].append((x_0, condition))
        return loss(self, x_0, t, eps, condition, random)

    monkeypatch.setattr(DDPM, "loss", note)
    network = tiny_network(conditions=[AugmentationEmbedding(9)])
    model = tiny_model(network=network, augmentations=[GeometricAugmentation(0.5)])
    fit(tmp_path, [], model, max_steps=1, limit_val_batches=1, val_check_interval=1)
    (x_0, condition), *_ = seen[True]
    assert (condition.augmentation != 0).any(1).float().mean() > 0.5
    originals = Digits().open(tmp_path, "train").images
    known = {(each.float() / 127.5 - 1).numpy().tobytes() for each in originals}
    same = torch.tensor([each.numpy().tobytes() in known for each in x_0])
    assert same.tolist() == [not row.any() for row in condition.augmentation.abs() > 1e-6]
    assert all(condition.augmentation is None for _, condition in seen[False])


@pytest.mark.parametrize(
    ("network", "augmentations", "message"),
    [
        (
            lambda: tiny_network(),
            [GeometricAugmentation()],
            r"\(GeometricAugmentation\) have 9 parameters and the network has no AugmentationEmbedding; give its",
        ),
        (
            lambda: tiny_network(conditions=[AugmentationEmbedding(9)]),
            [GeometricAugmentation(), ColourAugmentation()],
            r"have 15 parameters and the network has an AugmentationEmbedding of 9; give .* with parameters=15",
        ),
        (
            lambda: tiny_network(conditions=[AugmentationEmbedding(9)]),
            [],
            r"\(no augmentation\) have 0 parameters .* of 9; give model.augmentations, or take it out",
        ),
        (
            lambda: tiny_network(conditions=[EarlyAugmentationEmbedding(6)]),
            [GeometricAugmentation()],
            r"\(GeometricAugmentation\) have 9 parameters and the network has an EarlyAugmentationEmbedding of 6; give",
        ),
        (
            lambda: tiny_network(conditions=[AugmentationEmbedding(9), ConcatenatedImage(1, 8)]),
            [GeometricAugmentation()],
            "augmentation transforms the images, not those that they are conditioned on; leave one of the two",
        ),
        (
            lambda: DiT(4, 8, patch=2, width=16, depth=1, heads=2, conditions=[AugmentationEmbedding(6)]),
            [ColourAugmentation()],
            "changes images with 1 or 3 channels, got 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(network, augmentations, message) -> None:
    with pytest.raises(UserError, match=message):
        tiny_model(network=network(), augmentations=augmentations)


def test_the_embedding_counts_its_parameters() -> None:
    with pytest.raises(UserError, match="at least 1 parameter, got 0"):
        AugmentationEmbedding(0)
    embedding = AugmentationEmbedding(3)
    embedding.build(4)
    nn.init.ones_(embedding.linear.weight)
    t = torch.ones(2)
    assert torch.equal(embedding(Condition(), t), torch.zeros(2, 4))
    given = Condition(torch.tensor([1, 2]), augmentation=torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]))
    assert torch.equal(embedding(given.hide(), t), torch.tensor([[6.0], [1.0]]).expand(2, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda early: tiny_network(conditions=[early]),
        lambda early: DiT(1, 8, width=16, depth=1, heads=2, conditions=[early]),
    ],
    ids=["UNet", "DiT"],
)
def test_an_early_embedding_is_added_to_the_features_of_the_timestep(make) -> None:
    network = make(EarlyAugmentationEmbedding(9)).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    x, t, done = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.randn(2, 9)
    with torch.no_grad():
        found, plain = network(x, t, Condition(augmentation=done)), network(x, t)
        added = done @ network.conditions[0].linear.weight.T
        network.embed[0].register_forward_hook(lambda _, __, features: features + added)
        torch.testing.assert_close(found, network(x, t))
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(plain, network_without_conditions(network)(x, t)), "parameters of 0 change nothing"


@torch.no_grad()
def network_without_conditions(network: nn.Module) -> nn.Module:
    """Return a copy of the network without its conditions, and without hooks."""
    other = DiT(1, 8, width=16, depth=1, heads=2) if isinstance(network, DiT) else tiny_network()
    other.load_state_dict({name: each for name, each in network.state_dict().items() if "conditions" not in name})
    return other.eval()


def test_a_network_without_features_of_the_timestep_refuses_an_early_condition() -> None:
    with pytest.raises(UserError, match="which this network does not give; use UNet or DiT, or an AddedCondition"):
        Conditions([EarlyAugmentationEmbedding(9)]).build(32)


def test_a_model_trains_with_an_early_embedding(tmp_path) -> None:
    network = tiny_network(conditions=[EarlyAugmentationEmbedding(9)])
    before = network.conditions[0].linear.weight.detach().clone()
    model = tiny_model(network=network, augmentations=[GeometricAugmentation(0.5)])
    fit(tmp_path, [], model, max_steps=2)
    assert (network.conditions[0].linear.weight != before).all(0).any()
