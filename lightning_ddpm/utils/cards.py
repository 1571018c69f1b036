"""Common GPUs, as the datasheets of their vendor describe them.

Sources, all of NVIDIA: the datasheets of DGX B200, H200, H100, A100, L40S, L4, A10, V100 (SXM2) and T4 Tensor
Core GPU and of RTX A6000; for GeForce the appendices of the architecture white papers on GA102 (3090), Ada (4090) and
RTX Blackwell (5090), with float32 accumulation.
"""

import re
from difflib import get_close_matches
from typing import NamedTuple

from lightning_ddpm.utils.errors import UserError


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: as on the command line.
        driver: regular expression that finds it in the name that the driver gives it.
        memory: GB, of 10^9 bytes.
        bandwidth: of its memory, GB/s.
        fp32, tf32, half: peaks in TFLOP/s of dense matrices. ``tf32`` is that of float32 where the GPU has no TF32;
            ``half`` is that of bfloat16, or of float16 where the GPU has no bfloat16.
        bf16: whether it has bfloat16.
    """

    name: str
    driver: str
    memory: float
    bandwidth: float
    fp32: float
    tf32: float
    half: float
    bf16: bool = True


CARDS = (
    Card("b200-180gb", r"\bB200\b", 180, 8000, 75, 1125, 2250),
    Card("h200-141gb", r"\bH200\b", 141, 4800, 67, 494, 989),
    Card("h100-80gb", r"\bH100\b(?!.*PCIe)", 80, 3350, 67, 494, 989),
    Card("h100-pcie-80gb", r"\bH100 PCIe\b", 80, 2000, 51, 378, 756),
    Card("a100-80gb", r"\bA100\b.*80GB(?! PCIe)", 80, 2039, 19.5, 156, 312),
    Card("a100-pcie-80gb", r"\bA100 80GB PCIe\b", 80, 1935, 19.5, 156, 312),
    Card("a100-40gb", r"\bA100\b.*40GB", 40, 1555, 19.5, 156, 312),
    Card("l40s-48gb", r"\bL40S\b", 48, 864, 91.6, 183, 362),
    Card("a6000-48gb", r"\bRTX A6000\b", 48, 768, 38.7, 77.4, 154.8),
    Card("rtx5090-32gb", r"\bRTX 5090$", 32, 1792, 104.8, 104.8, 209.5),
    Card("rtx4090-24gb", r"\bRTX 4090$", 24, 1008, 82.6, 82.6, 165.2),
    Card("rtx3090-24gb", r"\bRTX 3090$", 24, 936, 35.6, 35.6, 71),
    Card("l4-24gb", r"\bL4\b", 24, 300, 30.3, 60, 121),
    Card("a10-24gb", r"\bA10\b", 24, 600, 31.2, 62.5, 125),
    Card("v100-32gb", r"\bV100\b.*32GB", 32, 900, 15.7, 15.7, 125, bf16=False),
    Card("v100-16gb", r"\bV100\b.*16GB", 16, 900, 15.7, 15.7, 125, bf16=False),
    Card("t4-16gb", r"\bT4\b", 16, 320, 8.1, 8.1, 65, bf16=False),
)


def get_card(name: str) -> Card:
    """Return the card of this name, in upper or lower case.

    Raises:
        UserError: it is not in the table.
    """
    for card in CARDS:
        if card.name == name.lower():
            return card
    known = {_join(card.name): card.name for card in CARDS}
    wanted = _join(name)
    near = [known[each] for each in known if wanted and each.startswith(wanted)]
    near = near or [known[each] for each in get_close_matches(wanted, known, n=1)]
    fix = f"; did you mean {near[0]}? There are" if near else "; give one of"
    raise UserError(f"--gpu {name} is not in the table of cards{fix} {', '.join(known.values())}")


def _join(name: str) -> str:
    """Return a name in lower case, without hyphens and spaces."""
    return re.sub(r"[-_ ]", "", name.lower())


def find_card(driver_name: str) -> Card | None:
    """Return the card that the driver names so, as in ``NVIDIA H100 80GB HBM3``; ``None`` if it is not in the table."""
    return next((card for card in CARDS if re.search(card.driver, driver_name)), None)
