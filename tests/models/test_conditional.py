"""Models with classes: training with hidden labels, the labels of generated images, and guidance."""

from pathlib import Path

import pytest
import torch
from helpers.conditional_data import CONDITIONAL, PARTS, SCHEDULE
from helpers.known_data import TWO, randn
from helpers.tiny import TINY, quiet_trainer, same, tiny_model, tiny_network, weights
from torch import Tensor, nn

from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.data.class_labels import cycle_labels, parse_labels, spread_labels
from lightning_ddpm.diffusion import ClassifierFree, Heun, Linear
from lightning_ddpm.models import checkpoint_guidance
from lightning_ddpm.models.checkpoint_guidance import Autoguidance, ClassifierGuidance
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 5, 10, 15, 20])


# the network


def test_classes_add_one_table_to_the_network_and_change_no_other_weight() -> None:
    torch.manual_seed(0)
    without = UNet(**TINY).state_dict()
    torch.manual_seed(0)
    conditional = UNet(**TINY, classes=3).state_dict()
    assert conditional.keys() - without.keys() == {"embed_label.vectors.weight"}
    assert all(torch.equal(value, conditional[name]) for name, value in without.items())
    assert conditional["embed_label.vectors.weight"].shape == (4, 32)


def test_label_minus_1_means_no_class_and_each_class_changes_the_output() -> None:
    network, (x_t, t) = tiny_network(classes=10).eval(), batch()
    unconditional = network(x_t, t)
    assert torch.equal(network(x_t, t, torch.full((5,), -1)), unconditional)
    outputs = [network(x_t, t, torch.full((5,), label)) for label in (0, 9)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], unconditional)
    mixed = network(x_t, t, torch.tensor([-1, 0, 9, -1, 0]))
    torch.testing.assert_close(
        mixed, torch.stack([unconditional[0], outputs[0][1], outputs[1][2], unconditional[3], outputs[0][4]])
    )
    with pytest.raises(IndexError):
        network(x_t, t, torch.full((5,), 11))


# training


class RecordLabels(nn.Module):
    """Keeps the labels that it is given."""

    channels, size, classes = 1, 8, 10

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))
        self.labels: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.labels.append(label)
        return self.factor * x_t


def record_labels(folder: Path, steps: int, **arguments) -> list[Tensor]:
    """Train for some steps and return the labels that the network was given at each."""
    model = tiny_model(network=RecordLabels(), **arguments)
    quiet_trainer(folder, max_steps=steps).fit(model, datamodule=ImageDataModule(Digits(), batch_size=400))
    return model.network.labels


def test_a_tenth_of_the_labels_is_hidden_as_a_function_of_the_step_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    labels = record_labels(tmp_path, 12)
    dropped = torch.cat(labels) == -1
    share = float(dropped.double().mean())
    assert share == pytest.approx(0.1, abs=4 * (0.09 / len(dropped)) ** 0.5)
    kept = record_labels(tmp_path, 12, label_dropout=0.0)
    for some, whole in zip(labels, kept, strict=True):
        assert (whole >= 0).all()
        assert torch.equal(some[some >= 0], whole[some >= 0])
    torch.rand(7)  # the result does not depend on the state of the global generator
    assert all(map(torch.equal, labels, record_labels(tmp_path, 12)))
    patterns = [tuple((each == -1).tolist()) for each in labels]
    assert len(set(patterns)) == len(patterns)
    assert (torch.cat(record_labels(tmp_path, 2, label_dropout=1.0)) == -1).all()


def test_a_model_without_classes_ignores_labels_and_label_dropout(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    trained = []
    for dropout in (0.0, 1.0):
        model = tiny_model(label_dropout=dropout)
        quiet_trainer(tmp_path, max_steps=2).fit(model, datamodule=ImageDataModule(Digits(), batch_size=64))
        trained.append(weights(model))
        assert "class_counts" not in model.state_dict()
    assert same(*trained)


def test_data_with_other_classes_than_the_model_is_an_error(tmp_path) -> None:
    for names, found in ((list("abcdefghij"), "a, b, c, d, e, f, g, h, i, j"), (None, "0, 1, 2")):
        network = tiny_network(classes=len(names) if names else 3)
        model = tiny_model(network=network, class_names=names)
        with pytest.raises(UserError, match=f"the model has the classes {found} and the data has 0, 1, 2, 3"):
            quiet_trainer(tmp_path, max_steps=1).fit(model, datamodule=ImageDataModule(Digits()))


def test_arguments_that_do_not_fit_together_are_errors() -> None:
    with pytest.raises(UserError, match=r"label_dropout must lie in \[0, 1\], got 1.5"):
        tiny_model(label_dropout=1.5)
    with pytest.raises(UserError, match="class_names has 2 names and UNet has 0 classes"):
        tiny_model(class_names=["cat", "dog"])
    with pytest.raises(UserError, match="got None; use labelled images, or give classes=0"):
        UNet(**TINY, classes=None)
    with pytest.raises(UserError, match=r"and this one has label_dropout=0; use scale 1"):
        ClassifierFree(2.0).check_model(tiny_model(network=tiny_network(classes=10), label_dropout=0.0))
    with pytest.raises(UserError, match="ends at t=30 and T is 20"):
        ClassifierFree(2.0, (1, 30)).check_model(tiny_model(network=tiny_network(classes=10)))


# the labels of generated images


def test_generated_images_have_the_class_frequencies_of_the_data_as_a_function_of_seed_and_index() -> None:
    counts = torch.tensor([10, 0, 30, 60])
    labels = spread_labels(counts, 5, 0, 1000)
    generated = torch.bincount(labels, minlength=4)
    assert (generated - 10 * counts).abs().max() <= 5  # independent labels would have a standard deviation of 14
    assert torch.equal(torch.cat([spread_labels(counts, 5, *part) for part in ((0, 3), (3, 700), (700, 1000))]), labels)
    assert not torch.equal(spread_labels(counts, 6, 0, 1000), labels)
    assert torch.bincount(spread_labels(torch.zeros(4), 5, 0, 1000)).sub(250).abs().max() <= 5
    assert cycle_labels([7, 3], 3, 8).tolist() == [3, 7, 3, 7, 3]


def test_classes_are_requested_by_number_or_by_name() -> None:
    assert parse_labels("1, 0", ["cat", "dog"], by_name=False) == [1, 0]
    assert parse_labels("dog,dog", ["cat", "dog"], by_name=True) == [1, 1]
    for given, by_name in (("2", False), ("-1", False), ("cat", False), ("0", True), ("", True), ("cat,,dog", True)):
        unknown = "" if given == "cat,,dog" else given
        with pytest.raises(
            UserError, match=rf"there is no class (named )?'{unknown}'.*; there are 0 \(cat\), 1 \(dog\)"
        ):
            parse_labels(given, ["cat", "dog"], by_name)
    with pytest.raises(UserError, match=r"23 \(23\) and 976 more$"):
        parse_labels("1000", [str(label) for label in range(1000)], by_name=False)


def test_names_with_commas_and_spaces_are_found_the_longest_first() -> None:
    names = ["a", "a,b", "b", " c ", "d, e", "f,g,h"]
    assert parse_labels("a,b,b", names, by_name=True) == [1, 2]
    assert parse_labels("b,a,b,a", names, by_name=True) == [2, 1, 0]
    assert parse_labels(" c ,d, e, f,g,h ,a", names, by_name=True) == [3, 4, 5, 0]


def test_images_are_conditioned_on_their_classes_and_on_none_with_guidance_0() -> None:
    model = tiny_model(network=tiny_network(classes=10)).eval()
    with torch.no_grad():
        for guidance in (None, ClassifierFree(1.0)):
            pixels = model.generate(SampleRequest(4, guidance=guidance, labels=[7, 3]), 0, 4)
            _, x_T, noise = model.prepare_sampling(SampleRequest(4), 0, 4)
            conditional = model.sampler.sample(model.denoiser.conditioned_on(torch.tensor([7, 3, 7, 3])), x_T, noise)
            assert torch.equal(pixels, ((conditional.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        free, x_T, noise = model.prepare_sampling(SampleRequest(4, guidance=ClassifierFree(0.0), labels=[7, 3]), 0, 4)
        assert torch.equal(model.sampler.sample(free, x_T, noise), model.sampler.sample(model.denoiser, x_T, noise))


# guidance by another checkpoint, on data whose conditional distributions are known


class ExactClassifier(nn.Module):
    """Computes log p(y, x_t) of the two Gaussians, up to a constant."""

    channels, size, classes = 1, 2, 2

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = SCHEDULE.signal[t[0]], SCHEDULE.noise[t[0]]
        logs = [TWO.weights[y].log() + PARTS[y].log_density(x_t, signal, noise) for y in (0, 1)]
        return torch.stack(logs, dim=1)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("inference", [False, True])
def test_a_classifier_from_a_checkpoint_guides_to_the_class_s_distribution(inference, y, monkeypatch) -> None:
    classifier = NoisyClassifier(ExactClassifier(), Linear(1000))
    monkeypatch.setattr(checkpoint_guidance, "load", lambda ckpt, kind: classifier)
    guided = ClassifierGuidance("a.ckpt", 1.0)(CONDITIONAL, torch.full((4000,), y))
    with torch.inference_mode(inference):
        x = Heun(100).sample(guided, randn(4000, 1, 1, 2, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(x.mean(0), PARTS[y].mean(), rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), PARTS[y].covariance(), rtol=0, atol=0.006)


def test_a_classifier_is_used_inside_its_interval_only_and_not_with_scale_0(monkeypatch) -> None:
    classifier = NoisyClassifier(ExactClassifier(), Linear(1000))
    monkeypatch.setattr(checkpoint_guidance, "load", lambda ckpt, kind: classifier)
    label, x_t = torch.zeros(8, dtype=torch.long), randn(8, 1, 1, 2, dtype=torch.float64)
    guided = ClassifierGuidance("a.ckpt", 2.0, (300, 400))(CONDITIONAL, label)
    for t, changed in ((299, False), (300, True), (400, True), (401, False)):
        assert torch.equal(guided(x_t, t).eps, CONDITIONAL(x_t, t).eps) is not changed
    assert ClassifierGuidance("a.ckpt", 0.0)(CONDITIONAL, label) is CONDITIONAL


def test_autoguidance_extrapolates_from_the_weaker_model(monkeypatch) -> None:
    strong, weak = tiny_model(network=tiny_network(classes=10)), tiny_model(network=tiny_network(classes=10))
    for parameter in weak.parameters():
        parameter.data *= 0.9
    strong.eval(), weak.eval()
    monkeypatch.setattr(checkpoint_guidance, "load", lambda ckpt, kind: weak)
    (x_t, t), label = batch(), torch.tensor([0, 1, 2, 3, 4])
    with torch.no_grad():
        good, bad = (each.network(x_t, t, label) for each in (strong, weak))
        for w in (0.0, 1.0, 2.5):
            guidance = Autoguidance("weak.ckpt", w)
            guidance.check_model(strong)
            output, _ = guidance(strong.denoiser, label).network_output(x_t, t)
            torch.testing.assert_close(output, bad + w * (good - bad))
        itself = Autoguidance("weak.ckpt", 1.0)(strong.denoiser, label)
        assert torch.equal(itself.network_output(x_t, t)[0], good)
    with pytest.raises(UserError, match=r"weak.ckpt has the classes 0, 1, .* and the model none"):
        Autoguidance("weak.ckpt", 2.0).check_model(tiny_model())
