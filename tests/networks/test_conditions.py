"""Networks that are conditioned on a class, several classes, a vector and an image."""

import pytest
import torch
from helpers.conditions import make_network
from helpers.tiny import TINY
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.networks import ConcatenatedImage, DiT, MultiLabelEmbedding, UNet, VectorEmbedding
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.errors import UserError

NETWORKS = ["UNet", "DiT"]


def make_batch() -> tuple[Tensor, Tensor, Condition]:
    random = torch.Generator().manual_seed(1)
    x_t, image = (torch.randn(4, 1, size, size, generator=random) for size in (8, 4))
    vector, multilabel = torch.randn(4, 2, generator=random), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    return x_t, torch.tensor([1, 5, 10, 15]), Condition(torch.tensor([0, 3, 9, -1]), multilabel, vector, image)


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_kind_changes_the_prediction_and_hidden_ones_do_not(kind: str) -> None:
    network, (x_t, t, condition) = make_network(kind).eval(), make_batch()
    whole, unconditional = network(x_t, t, condition), network(x_t, t)
    assert torch.equal(network(x_t, t, condition.hide()), unconditional)
    where = torch.tensor([True, False, False, True])
    partly = network(x_t, t, condition.hide(where))
    torch.testing.assert_close(partly, torch.where(where[:, None, None, None], unconditional, whole))
    for name in condition.kinds - {"label"}:
        given = getattr(condition, name)
        changed = network(x_t, t, condition._replace(**{name: given.flip(0)}))
        assert ((changed - whole).flatten(1).abs().amax(1) > 1e-4).all(), name
    labelled = network(x_t, t, condition._replace(label=torch.tensor([1, 1, 1, 1])))
    assert ((labelled - whole).flatten(1).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_has_a_gradient_whatever_is_hidden(kind: str) -> None:
    network, (x_t, t, condition) = make_network(kind), make_batch()
    for given in (condition, condition.hide(), None):
        network.zero_grad()
        network(x_t, t, given).square().sum().backward()
        assert all(each.grad is not None for each in network.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_labels_alone_are_the_condition_of_these_labels(kind: str) -> None:
    network, (x_t, t, condition) = make_network(kind).eval(), make_batch()
    assert torch.equal(network(x_t, t, condition.label), network(x_t, t, condition.keep(["label"])))


def test_conditions_leave_the_initial_weights_of_other_layers_as_they_are() -> None:
    found = []
    for conditions in ([], [VectorEmbedding(["a"]), MultiLabelEmbedding(["b", "c"])]):
        torch.manual_seed(0)
        found.append(UNet(**TINY, classes=3, conditions=conditions).state_dict())
    without, conditional = found
    assert all(torch.equal(value, conditional[name]) for name, value in without.items())
    assert {name.split(".")[0] for name in conditional.keys() - without.keys()} == {"conditions"}


def test_an_image_is_enlarged_bicubically_and_marked_as_given() -> None:
    layer, (x_t, _, condition) = ConcatenatedImage(1, 4), make_batch()
    assert condition.image is not None
    whole = layer(condition.hide(torch.tensor([False, True, False, False])), x_t)
    enlarged = functional.interpolate(condition.image, (8, 8), mode="bicubic")
    shown = torch.tensor([1.0, 0, 1, 1])[:, None, None, None]
    assert torch.equal(whole, torch.cat([x_t, enlarged * shown, shown.expand(4, 1, 8, 8)], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_that_is_larger_is_shrunk_without_aliasing(dtype: torch.dtype) -> None:
    layer, x_t = ConcatenatedImage(1, 32), torch.zeros(1, 1, 8, 8, dtype=dtype)
    stripes = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(8).expand(1, 1, 32, 32)  # of which 8 pixels can show nothing
    assert functional.interpolate(stripes, (8, 8), mode="bicubic").abs().min() > 0.9
    assert layer(Condition(image=stripes), x_t)[0, 1, :, 1:-1].abs().max() < 0.05
    slope = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    found = layer(Condition(image=slope), x_t)[0, 1]
    assert found.dtype == dtype
    means = slope.reshape(32, 8, 4).mean(2)[0]
    torch.testing.assert_close(found[:, 1:-1], means.expand(8, 8)[:, 1:-1].to(dtype), rtol=0, atol=0.02)


def test_a_vector_is_standardised_by_the_training_set_and_a_constant_number_is_refused() -> None:
    layer = VectorEmbedding(["a", "b"])
    layer.build(8)
    vectors = torch.tensor([[1.0, 1e4], [3.0, 3e4], [5.0, 8e4]])
    layer.measure(vectors)
    torch.testing.assert_close(layer.mean, torch.tensor([3.0, 4e4]))
    torch.testing.assert_close(layer.std, vectors.std(0, correction=0))
    plain = VectorEmbedding(["a", "b"])
    plain.build(8)
    plain.load_state_dict(layer.state_dict() | {"mean": torch.zeros(2), "std": torch.ones(2)})
    t = torch.ones(3)
    standardised = (vectors - layer.mean) / layer.std
    assert torch.equal(layer(Condition(vector=vectors), t), plain(Condition(vector=standardised), t))
    with pytest.raises(UserError, match="the condition b is 2 for all training images"):
        layer.measure(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))


def test_the_width_between_the_layers_of_a_vector_is_that_of_the_embedding_or_as_given() -> None:
    for hidden, expected in ((None, 8), (5, 5)):
        layer = VectorEmbedding(["a", "b"], hidden)
        layer.build(8)
        assert layer.first.weight.shape == (expected, 3)
        assert layer(Condition(vector=torch.ones(4, 2)), torch.ones(4)).shape == (4, 8)
    with pytest.raises(UserError, match="hidden must be at least 1, got 0"):
        VectorEmbedding(["a"], 0)


def test_conditions_that_cannot_be_built_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="VectorEmbedding needs names, got None; on the command line null takes those"):
        VectorEmbedding()
    with pytest.raises(UserError, match="two embeddings of the kind vector"):
        DiT(1, 8, width=16, depth=1, heads=2, conditions=[VectorEmbedding(["a"]), VectorEmbedding(["b"])])
    with pytest.raises(UserError, match="ConcatenatedImage needs channels and size of the condition, got None and 4"):
        ConcatenatedImage(size=4)


def test_two_batches_are_joined_and_labels_alone_stay_a_tensor() -> None:
    _, _, condition = make_batch()
    both = condition.join(condition.hide())
    assert both.given is not None
    assert both.given.tolist() == [True] * 4 + [False] * 4
    assert all(len(each) == 8 for each in both if each is not None)
    labels = as_condition(torch.tensor([1, 2]))
    assert torch.equal(labels.join(labels.hide()).argument, torch.tensor([1, 2, -1, -1]))
    assert condition.argument is condition
    assert condition.keep(["vector"]).kinds == {"vector"}
