"""Random numbers that are functions of what they are for, not of what ran before.

Nothing here has state: the noise of training step 7 on rank 1 is the same whether the run was interrupted or not, and
different from rank 0's.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def make_generator(device: torch.device | str, purpose: str, *key: int, index: int = 0) -> torch.Generator:
    """A generator for one purpose, one key and one index.

    Args:
        device: where the numbers are drawn; the CPU's and a GPU's differ.
        purpose: keeps uses with equal keys apart.
        key: integers that name the use: seed, rank, ...
        index: counts uses of one (purpose, key); different indices never collide.
    """
    digest = hashlib.blake2b(repr((purpose, key)).encode(), digest_size=4).digest()
    # torch's CPU generator takes 32 bits of a seed: hash the key into them, but count the index, which cannot collide.
    return torch.Generator(device).manual_seed((int.from_bytes(digest, "big") + index) % 2**32)


@contextmanager
def seed_globally(device: torch.device, purpose: str, *key: int, index: int = 0) -> Iterator[None]:
    """Inside, torch's global generators draw as :func:`make_generator` says: for dropout, which takes no generator.

    Afterwards they go on as if nothing had been drawn.
    """
    drawing = [torch.default_generator]
    if device.type == "cuda":
        index_ = torch.cuda.current_device() if device.index is None else device.index
        drawing.append(torch.cuda.default_generators[index_])
    before = [each.get_state() for each in drawing]
    seed = make_generator("cpu", purpose, *key, index=index).initial_seed()
    try:
        for each in drawing:
            each.manual_seed(seed)
        yield
    finally:
        for each, state in zip(drawing, before, strict=True):
            each.set_state(state)


def get_run_seed() -> int:
    """The seed of the run, as ``seed_everything`` left it; 0 where nobody called it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class ImageNoise:
    """Standard normal noise of images ``start``..``stop``, call after call.

    Image i gets the same noise whatever batch it is in, because noise is drawn in fixed blocks of indices: a batch
    draws every block that it touches and keeps its own part. So 50,000 images take 3,125 generators a run, not 50,000.

    Args:
        seed: of the set of images.
        start, stop: the images, as ``range(start, stop)``.
        purpose: what for; images are generated from ``image``.
    """

    BLOCK = 16

    def __init__(self, seed: int, start: int, stop: int, purpose: str = "image") -> None:
        self.seed, self.start, self.stop, self.purpose = seed, start, stop, purpose
        self.generators: list[torch.Generator] = []

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise, shaped as ``like`` (stop - start, ...), on its device and in its precision."""
        first = self.start // self.BLOCK
        if not self.generators:
            blocks = range(first, (self.stop - 1) // self.BLOCK + 1)
            self.generators = [make_generator(like.device, self.purpose, self.seed, index=block) for block in blocks]
        shape = (self.BLOCK, *like.shape[1:])
        drawn = [torch.randn(shape, generator=each, device=like.device, dtype=like.dtype) for each in self.generators]
        offset = first * self.BLOCK
        return torch.cat(drawn)[self.start - offset : self.stop - offset]
