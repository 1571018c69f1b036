"""Models with other conditions than a class: training, guidance, sampling and what data must have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.conditions import EVERYTHING, DescribedDigits, make_network
from helpers.tiny import quiet_trainer, same, tiny_model, tiny_network, weights
from torch import Tensor, nn

from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import ClassifierFree
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import VectorEmbedding
from lightning_ddpm.networks.conditions import Conditions
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError


class RecordConditions(nn.Module):
    """Keeps the conditions that it is given."""

    channels, size, classes = 1, 8, 10

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))
        self.conditions = make_network("UNet").conditions
        self.seen: list[Any] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        self.seen.append(condition)
        return self.factor * x_t


def make_data(**options: Any) -> ImageDataModule:
    return ImageDataModule(DescribedDigits(), batch_size=64, **options)


def fit(folder: Path, model: Any, data: ImageDataModule, steps: int = 2, **options: Any) -> Any:
    quiet_trainer(folder, max_steps=steps, **options).fit(model, datamodule=data)
    return model


def test_all_kinds_are_hidden_together_from_a_tenth_of_the_images(tmp_path: Path) -> None:
    model = fit(tmp_path, tiny_model(network=RecordConditions()), make_data(), 20)
    seen = [each for each in model.network.seen if isinstance(each, Condition)]
    assert len(seen) == 20
    given = torch.cat([each.given for each in seen])
    assert float(given.double().mean()) == pytest.approx(0.9, abs=4 * (0.09 / len(given)) ** 0.5)
    assert torch.equal(torch.cat([each.label for each in seen]) >= 0, given)
    image = torch.cat([each.image for each in seen])
    assert -1 <= float(image.min()) < float(image.max()) <= 1


def test_an_image_and_its_condition_are_mirrored_together(tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny_model(network=RecordConditions(), label_dropout=0.0)
    data, batches = make_data(flip=True), []
    training_step = model.training_step
    monkeypatch.setattr(model, "training_step", lambda *each: batches.append(each[0]) or training_step(*each))
    fit(tmp_path, model, data, 1)
    x_0, condition = batches[0]
    halved = nn.functional.avg_pool2d(x_0, 2)
    torch.testing.assert_close(condition.image, halved, atol=1 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["UNet", "DiT"])
def test_training_measures_the_vectors_and_is_resumed_from_its_own_weights(kind: str, tmp_path: Path) -> None:
    model = fit(tmp_path, tiny_model(network=make_network(kind)), make_data(), limit_val_batches=1)
    data = make_data()
    vectors = data.train.vector  # type: ignore[attr-defined]
    torch.testing.assert_close(model.network.conditions[0].mean, vectors.mean(0))
    again = fit(tmp_path, tiny_model(network=make_network(kind)), make_data())
    assert same(weights(model), weights(again))
    other = tiny_model(network=make_network(kind))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.network.conditions[0].std, vectors.std(0, correction=0))


def make_request(n: int, **options: Any) -> SampleRequest:
    data = make_data().train
    return SampleRequest(n, conditions=lambda start, stop: data.read_conditions(range(start, stop)), **options)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["UNet", "DiT"])
def test_guidance_interpolates_the_conditional_and_the_unconditional_prediction(kind: str) -> None:
    model = tiny_model(network=make_network(kind)).eval()
    request = make_request(4)
    with torch.no_grad():
        outputs = []
        for guidance in (ClassifierFree(0.0), None, ClassifierFree(1.0), ClassifierFree(3.0)):
            denoise, x_T, _ = model.prepare_sampling(make_request(4, guidance=guidance), 0, 4)
            outputs.append(denoise.call_network(x_T, 7))
        unconditional, conditional, same_again, guided = outputs
        condition = model.choose_condition(request, 0, 4)
        assert torch.equal(conditional, model.network(x_T, torch.full((4,), 7), condition))
        assert torch.equal(unconditional, model.network(x_T, torch.full((4,), 7)))
    assert torch.equal(conditional, same_again)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), atol=1e-4, rtol=1e-4)


def test_an_image_depends_on_its_condition_alone_in_batches_of_any_size() -> None:
    model = tiny_model(network=make_network("UNet"))
    whole = torch.cat([pixels for _, pixels in generate_batches(model, make_request(6, batch_size=6))])
    parts = torch.cat([pixels for _, pixels in generate_batches(model, make_request(6, batch_size=4))])
    assert (whole.int() - parts.int()).abs().max() <= 1
    unconditional = SampleRequest(6, guidance=ClassifierFree(0.0))
    others = torch.cat([pixels for _, pixels in generate_batches(model, unconditional)])
    assert (whole.int() - others.int()).abs().max() > 10


def test_a_model_that_needs_a_condition_is_not_sampled_without_one() -> None:
    model = tiny_model(network=make_network("UNet"))
    with pytest.raises(UserError, match=r"conditioned on the vector \(ink, height\) and several of the classes"):
        model.generate(SampleRequest(2), 0, 2)
    lacking = SampleRequest(2, conditions=lambda start, stop: Condition(vector=torch.zeros(2, 2)))
    with pytest.raises(UserError, match="the request has no image; add it"):
        model.generate(lacking, 0, 2)


def test_in_training_the_conditions_of_held_out_images_are_generated(tmp_path: Path) -> None:
    model = fit(tmp_path, tiny_model(network=make_network("UNet")), make_data())
    found = model.choose_condition(SampleRequest(200), 0, 200)
    held_out = make_data().held_out
    vectors = held_out.vector  # type: ignore[attr-defined]
    rows = {tuple(each) for each in vectors.tolist()}
    assert {tuple(each) for each in found.vector.tolist()} == rows
    assert not torch.equal(found.vector[: len(held_out)], vectors)


def test_data_without_the_conditions_of_the_model_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the model is conditioned on .* and the data have nothing; make them equal"):
        fit(tmp_path, tiny_model(network=make_network("UNet")), ImageDataModule(Digits(), batch_size=64))
    network = tiny_network()
    network.conditions = Conditions([VectorEmbedding(["ink", "width"])])
    network.conditions.build(32)
    with pytest.raises(UserError, match=r"the vector \(ink, width\) and the data have the vector \(ink, height\)"):
        fit(tmp_path, tiny_model(network=network), make_data())


def test_a_source_that_opens_other_conditions_than_it_declares_is_an_error(tmp_path: Path) -> None:
    class Wrong(DescribedDigits):
        condition = EVERYTHING.__class__(vector=("a", "b", "c"))

    with pytest.raises(UserError, match=r"Wrong declares the vector \(a, b, c\) as condition and opens image, multi"):
        ImageDataModule(Wrong()).train.labels  # noqa: B018

    class Undeclared(Digits):
        condition = EVERYTHING

    with pytest.raises(UserError, match=r"Undeclared declares .* and opens a MemoryDataset; return a Condition"):
        ImageDataModule(Undeclared()).train.labels  # noqa: B018


def test_a_network_whose_conditions_are_something_else_is_refused() -> None:
    network = tiny_network()
    network.conditions = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(UserError, match="UNet has a Linear in its attribute conditions"):
        tiny_model(network=network)
