"""The diffusion transformer: published sizes, the outputs of the authors' code and of diffusers, positions, errors."""

import math
import re
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from helpers.published_weights import DIT, JIT, LABEL, X_T, T, fill
from torch import Tensor, nn

from lightning_ddpm.networks import DiT
from lightning_ddpm.networks.positions import RotaryPositions, embed_positions
from lightning_ddpm.utils.errors import UserError

LATENT: dict[str, Any] = {"channels": 4, "size": 32, "outputs": 2, "classes": 1000}
MODERN: dict[str, Any] = {"rotary": True, "qk_norm": True, "rms_norm": True, "swiglu": True}
SMALL: dict[str, Any] = {"channels": 3, "size": 16, "patch": 4, "width": 32, "heads": 4, "classes": 4}
BUILT: dict[str, dict[str, Any]] = {
    "dit": SMALL | {"depth": 2, "outputs": 2},
    "jit": SMALL | MODERN | {"depth": 3, "bottleneck": 8, "class_tokens": 5, "class_tokens_from": 1},
}
PUBLISHED = {"dit": DIT, "jit": JIT}


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        (LATENT, 32_865_056),  # DiT-S/2, 33 million
        (LATENT | {"patch": 4, "width": 768, "heads": 12}, 130_426_496),  # DiT-B/4, 130 million
        (LATENT | {"width": 1152, "depth": 28, "heads": 16}, 674_834_720),  # DiT-XL/2, 675 million
        (
            {"channels": 3, "size": 256, "patch": 16, "width": 768, "heads": 12, "classes": 1000, "bottleneck": 128}
            | MODERN
            | {"class_tokens": 32},
            131_123_712,  # JiT-B/16, 131 million
        ),
    ],
    ids=["DiT-S/2", "DiT-B/4", "DiT-XL/2", "JiT-B/16"],
)
def test_the_published_shapes_have_the_authors_number_of_parameters(settings: dict[str, Any], published: int) -> None:
    """Those that are trained, counted in facebookresearch/DiT and LTH14/JiT."""
    with torch.device("meta"):
        assert sum(each.numel() for each in DiT(**settings).parameters()) == published


@pytest.mark.parametrize(
    ("patch", "width", "heads", "published", "quoted"),
    [(2, 384, 6, 32_865_056, 32.96), (4, 768, 12, 130_426_496, 130.48)],
    ids=["DiT-S/2", "DiT-B/4"],
)
def test_diffusers_builds_dit_with_the_same_number_of_parameters(patch, width, heads, published, quoted) -> None:
    """diffusers has an embedder of time and class in every block, where the authors have one for all.

    Numbers that are quoted for DiT often count its fixed positions, too.
    """
    with torch.device("meta"):
        twin = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=4,
            out_channels=8,
            num_layers=12,
            sample_size=32,
            patch_size=patch,
            num_embeds_ada_norm=1000,
        )
    embedder = twin.transformer_blocks[0].norm1.emb
    whole, one = (sum(each.numel() for each in module.parameters()) for module in (twin, embedder))
    assert whole - 11 * one == published
    positions = (32 // patch) ** 2 * width
    assert (published + positions) / 1e6 == pytest.approx(quoted, abs=0.01)


# ---- the authors' code -------------------------------------------------------------------------------------------

NAMES = {
    "embed.": "t_embedder.mlp.",
    "embed_label.vectors": "y_embedder.embedding_table",
    "embed_patch.0": "x_embedder.proj1",
    "embed_patch.1": "x_embedder.proj2",
    "class_positions": "in_context_posemb",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "attention.query_norm": "attn.q_norm",
    "attention.key_norm": "attn.k_norm",
    "hidden.gate_and_value": "mlp.w12",
    "hidden.out": "mlp.w3",
    "hidden.0": "mlp.fc1",
    "hidden.2": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
    "last.norm": "final_layer.norm_final",
    "last.": "final_layer.",
}


def name_theirs(ours: str, has_bottleneck: bool) -> str:
    """Return the name of a weight in both of the authors' programs."""
    name = re.sub(r"^embed\.(\d)", lambda index: f"embed.{int(index[1]) - 1}", ours)
    if not has_bottleneck:
        name = name.replace("embed_patch.0", "x_embedder.proj")
    for mine, theirs in NAMES.items():
        name = name.replace(mine, theirs)
    return name


def build(kind: str, **more: Any) -> DiT:
    """Return a small DiT or JiT with the weights of the formula."""
    network = DiT(**BUILT[kind] | more).eval()
    state = {}
    for name, own in network.state_dict().items():
        shape = (1, *own.shape) if name == "class_positions" else tuple(own.shape)
        state[name] = fill(name_theirs(name, kind == "jit"), shape).view(own.shape)
    network.load_state_dict(state)
    return network


@torch.no_grad()
def compute(network: DiT, kind: str) -> Tensor:
    return network(X_T, T, LABEL).flatten()[:: 193 if kind == "dit" else 97]


@pytest.mark.parametrize("kind", ["dit", "jit"])
def test_the_network_computes_what_the_authors_code_does(kind: str) -> None:
    torch.testing.assert_close(compute(build(kind), kind), torch.tensor(PUBLISHED[kind]), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "change", [{"heads": 2}, {"rotary": True}, {"rms_norm": True}, {"qk_norm": True}, {"learned_positions": True}]
)
def test_every_setting_matters(change: dict[str, Any]) -> None:
    assert (compute(build("dit", **change), "dit") - torch.tensor(DIT)).abs().max() > 0.01


def test_the_network_computes_what_diffusers_does() -> None:
    network = build("dit")
    twin = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=16,
        patch_size=4,
        num_embeds_ada_norm=4,
        norm_eps=1e-6,
    ).eval()
    own, state = network.state_dict(), {}
    names = {"embed_patch.0": "pos_embed.proj", "last.modulation": "proj_out_1", "last.linear": "proj_out_2"}
    for kind in ("weight", "bias"):
        state |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for ours, theirs in names.items()}
        for index in range(2):
            ours, theirs = f"blocks.{index}", f"transformer_blocks.{index}"
            query, key, value = own[f"{ours}.attention.qkv.{kind}"].chunk(3)
            state |= {f"{theirs}.attn1.to_q.{kind}": query, f"{theirs}.attn1.to_k.{kind}": key}
            state |= {f"{theirs}.attn1.to_v.{kind}": value}
            parts = {"attention.out": "attn1.to_out.0", "hidden.0": "ff.net.0.proj", "hidden.2": "ff.net.2"}
            parts |= {"modulation": "norm1.linear"}
            state |= {f"{theirs}.{name}.{kind}": own[f"{ours}.{mine}.{kind}"] for mine, name in parts.items()}
            embedder = f"{theirs}.norm1.emb.timestep_embedder"  # one in each block, of the same weights
            state |= {f"{embedder}.linear_1.{kind}": own[f"embed.1.{kind}"]}
            state |= {f"{embedder}.linear_2.{kind}": own[f"embed.3.{kind}"]}
    table = "norm1.emb.class_embedder.embedding_table.weight"
    state |= {f"transformer_blocks.{index}.{table}": own["embed_label.vectors.weight"] for index in range(2)}
    twin.load_state_dict(state)  # raises if a weight is missing or unknown
    for block in twin.transformer_blocks:  # diffusers' frequencies end at 1/10000, those of the authors before it
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    with torch.no_grad():
        for label in (LABEL, torch.tensor([-1, 3])):
            theirs = twin(X_T, timestep=T - 1, class_labels=torch.where(label < 0, 4, label)).sample
            torch.testing.assert_close(network(X_T, T, label), theirs, rtol=0, atol=5e-5)


# ---- positions ---------------------------------------------------------------------------------------------------


def test_products_of_rotated_queries_and_keys_depend_on_the_difference_of_positions_alone() -> None:
    torch.manual_seed(0)
    rows, columns = 3, 5
    query, key = (torch.randn(16, dtype=torch.float64).expand(1, 1, rows * columns, 16) for _ in range(2))
    rotary = RotaryPositions(rows, columns, 16)
    scores = (rotary(query) @ rotary(key).mT).view(rows, columns, rows, columns)
    torch.testing.assert_close(scores[0, 1, 1, 3], scores[1, 2, 2, 4], rtol=1e-5, atol=1e-5)
    assert (scores[0, 1, 1, 3] - scores[0, 1, 2, 2]).abs() > 0.01
    assert (scores[0, 0, 0, 1] - scores[0, 0, 1, 0]).abs() > 0.01


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    positions = embed_positions(2, 3, 8)
    for index, (row, column) in enumerate((row, column) for row in range(2) for column in range(3)):
        expected = [f(p / 100**k) for p in (column, row) for f in (math.sin, math.cos) for k in (0, 1)]
        torch.testing.assert_close(positions[index], torch.tensor(expected))


def test_images_that_are_not_square_keep_their_shape_and_patches_their_place() -> None:
    torch.manual_seed(0)
    network = DiT(1, (4, 8), patch=2, width=16, depth=1, heads=2)
    network.last.linear.weight.data.normal_()
    x = torch.randn(1, 1, 4, 8)
    moved = x.clone()
    moved[..., 2:, 6:] += 1  # with closed gates, an output patch depends on its own input alone
    difference = (network(moved, torch.tensor([3])) - network(x, torch.tensor([3])))[0, 0] != 0
    assert difference[2:, 6:].all()
    assert difference.sum() == 4
    assert network.size == (4, 8)


# ---- initialisation and gradients --------------------------------------------------------------------------------


def test_the_network_starts_at_zero_and_a_gradient_reaches_every_parameter_later() -> None:
    torch.manual_seed(0)
    network = DiT(**BUILT["jit"])
    assert (network(X_T, T, LABEL) == 0).all()
    for each in network.parameters():
        each.data += 0.05 * torch.randn_like(each)
    (network(X_T, T, torch.tensor([-1, 3])) - 1).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_labels_are_optional_and_none_means_no_class() -> None:
    network = build("dit")
    with torch.no_grad():
        none = network(X_T, T)
        assert torch.equal(none, network(X_T, T, torch.tensor([-1, -1])))
        assert (none - network(X_T, T, LABEL)).abs().max() > 0.01


def test_recomputed_activations_have_bit_equal_gradients_in_less_memory() -> None:
    found = []
    for recompute in (False, True):
        network, kept = build("jit", recompute=recompute), 0

        def pack(saved: Tensor) -> Tensor:
            nonlocal kept
            kept += saved.numel()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            output = network(X_T, T, LABEL)
        output.square().mean().backward()
        found.append((output.detach(), [each.grad for each in network.parameters()], kept))
    (plain, gradients, kept), (saving, same, less) = found
    assert torch.equal(plain, saving)
    assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))  # type: ignore[arg-type]
    assert less < 0.5 * kept


@pytest.mark.parametrize("change", [{}, {"bottleneck": 4}])
def test_weights_start_as_in_the_authors_code(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = DiT(3, 8, width=64, depth=1, heads=4, classes=10, **change)
    for linear in (network.blocks[0].attention.qkv, network.blocks[0].hidden[0]):
        bound = math.sqrt(6 / sum(linear.weight.shape))
        assert 0.98 * bound < linear.weight.abs().max() <= bound
    assert network.embed[1].weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in network.embed_patch:
        assert isinstance(layer, nn.Conv2d)
        bound = math.sqrt(6 / (layer.weight[0].numel() + layer.out_channels))
        assert 0.9 * bound < layer.weight.abs().max() <= bound


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": None}, "DiT needs the images' channels and size, got channels=3, size=None"),
        ({"size": (16, 18)}, r"size must be a multiple of patch, got \[16, 18\] and 4"),
        ({"heads": 5}, "width must be a multiple of heads, got 32 and 5"),
        ({"width": 30, "heads": 3}, "positions need a width that is a multiple of 4, got 30"),
        ({"heads": 16, "rotary": True}, "rotary positions need heads of a width that is a multiple of 4, got 2"),
        ({"classes": None}, "DiT needs the number of classes, got None; use labelled images, or give classes=0"),
        ({"classes": 0, "class_tokens": 4}, "class_tokens=4 need classes, and class_tokens_from to be one of the 12"),
        ({"class_tokens": 4, "class_tokens_from": 12}, "got classes=4 and class_tokens_from=12"),
        ({"depth": 0}, "channels, size, patch, width, depth, heads and outputs must be at least 1"),
        ({"hidden_ratio": 0.0}, "the hidden layer has no width; raise hidden_ratio, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiT(**SMALL | settings)
