"""Digests are part of file formats and of cache names: their values must never change."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_ddpm.utils.hashing import hash_bytes, hash_content, hash_file, hash_tensors, make_cache_key

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of ``abc``, from FIPS 180-2, appendix B.1."""


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {
        "b": torch.arange(12).reshape(3, 4) / 8,
        "a": torch.arange(5),
        "c.d": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
    }


def test_digests_of_files_and_bytes_are_the_standard_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == hash_bytes(b"abc") == ABC


def test_cache_keys_are_the_first_16_digits_of_the_sha256_of_text_or_bytes() -> None:
    assert make_cache_key("abc") == make_cache_key(b"abc") == ABC[:16]
    assert make_cache_key("é") == make_cache_key("é".encode())


def test_the_digest_of_tensors_is_unchanged_and_independent_of_their_order(state: dict[str, Tensor]) -> None:
    digest = "be2005472e556945ef2cdacc156abf7cb49e9244363b85b96059c31e1e9c01b1"
    assert hash_tensors(state) == digest
    assert hash_tensors(dict(reversed(state.items()))) == digest


@pytest.mark.parametrize("change", ["value", "name"])
def test_the_digest_of_tensors_depends_on_every_value_and_name(state: dict[str, Tensor], change: str) -> None:
    before = hash_tensors(state)
    if change == "value":
        state["a"][2] += 1
    else:
        state["e"] = state.pop("a")
    assert hash_tensors(state) != before


def test_the_digest_of_a_checkpoint_s_content_is_unchanged(state: dict[str, Tensor]) -> None:
    content = {
        "state": state,
        "plain": [1, 2.5, None, (True, "x")],
        "empty": {},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.0),
    }
    assert hash_content(content) == "5927b65696e2abeec9a9ba52e088d5eabf1d49abbf8edee42cbb7aa428111cdb"
