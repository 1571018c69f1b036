"""The table of cards."""

import pytest

from lightning_ddpm.utils.cards import CARDS, find_card, get_card
from lightning_ddpm.utils.errors import UserError


def test_an_unknown_card_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--gpu h999 is not in the table .*h100-80gb.*t4-16gb"):
        get_card("h999")
    assert get_card("H100-80GB").name == "h100-80gb"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_consistent(card) -> None:
    assert card.name.endswith(f"-{card.memory:g}gb")
    assert card.fp32 <= card.tf32 <= card.half
    assert [each.name for each in CARDS].count(card.name) == 1


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", "l4-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA RTX A6000", "a6000-48gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24gb"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla T4", "t4-16gb"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A1000", None),
    ],
)
def test_a_card_is_found_by_its_drivers_name(driver: str, name: str | None) -> None:
    found = find_card(driver)
    assert (found and found.name) == name
