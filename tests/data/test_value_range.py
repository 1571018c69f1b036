"""The range of values: exact round trips of every type, levels, and what is shown."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data.image_io import to_float, to_uint8
from lightning_ddpm.data.numbered_images import get_image_path, is_whole, read_numbered, write_images
from lightning_ddpm.data.value_range import DTYPES, UINT8, ValueRange, to_array, to_tensor
from lightning_ddpm.diffusion import Denoiser, Linear
from lightning_ddpm.diffusion.elbo import decoder_log_likelihood
from lightning_ddpm.utils.errors import UserError

RANGES = [
    UINT8,
    ValueRange("uint16", 0.0, 65535.0),
    ValueRange("uint16", 100.0, 4195.0),
    ValueRange("int16", -32768.0, 32767.0),
    ValueRange("int8", -128.0, 127.0),
    ValueRange("int32", 1e9, 1e9 + 1000),
]


@pytest.mark.parametrize("values", RANGES, ids=str)
def test_every_level_of_integers_comes_back(values: ValueRange) -> None:
    levels = np.arange(values.low, values.high + 1).astype(values.dtype)
    assert values.levels == len(levels)
    x = values.to_float(to_tensor(levels[None, None]))
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(to_array(values.to_data(x), values)[0, 0], levels)
    assert to_array(values.to_data(torch.tensor([[[-9.0, 9.0]]])), values).tolist() == [[[levels[0], levels[-1]]]]


def test_uint8_is_converted_bit_for_bit_as_it_always_was() -> None:
    pixels, x = torch.arange(256, dtype=torch.uint8), torch.randn(10_000)
    assert torch.equal(to_float(pixels), pixels.float() / 127.5 - 1)
    assert torch.equal(to_uint8(x), ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    assert UINT8.levels == 256


NARROW = [
    ValueRange("uint16", 0.0, 4095.0),
    ValueRange("int16", -300.0, 301.0),
    ValueRange("float16", [0.1, -3.0], [0.7, 5.0]),
    ValueRange("float32", [1000.1, -3.0], [1000.3, 5.0], bounded=False),
]


@pytest.mark.parametrize("values", NARROW, ids=str)
def test_values_that_float32_holds_are_converted_bit_for_bit_as_they_always_were(values: ValueRange) -> None:
    generator = torch.Generator().manual_seed(0)
    low, half = values.low, (np.array(values.high) - np.array(values.low)) / 2
    if isinstance(low, list):
        low, half = (torch.tensor(each, dtype=torch.float32)[:, None, None] for each in (low, half))
    else:
        half = float(half)
    pixels = (low + 2 * half * torch.rand(4, 2, 8, 8, generator=generator)).to(DTYPES[values.dtype])
    assert torch.equal(values.to_float(pixels), (pixels.float() - low) / half - 1)
    x = torch.randn(4, 2, 8, 8, generator=generator)
    expected = ((x.clamp(-1, 1) if values.bounded else x) + 1) * half + low
    expected = expected if values.dtype.startswith("float") else expected.round()
    assert torch.equal(values.to_data(x), expected.to(DTYPES[values.dtype]))


@pytest.mark.parametrize("low", [1.7e9, [1.7e9, -5e12]], ids=str)
def test_large_values_of_64_bits_are_scaled_before_they_are_rounded(low: float | list[float]) -> None:
    high = [each + 100 for each in low] if isinstance(low, list) else low + 100
    values = ValueRange("float64", low, high)
    shares = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = torch.tensor(low, dtype=torch.float64).reshape(-1, 1, 1) + 100 * shares
    x = values.to_float(data)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, (2 * shares - 1).float(), rtol=0, atol=1e-4 if isinstance(low, list) else 1e-7)
    torch.testing.assert_close(values.to_data(x), data, rtol=0, atol=1e-5 if isinstance(low, float) else 2e-3)


def test_unbounded_values_have_mean_0_and_deviation_1_in_each_channel_and_are_not_clipped() -> None:
    values = ValueRange("float32", [-1.0, 270.0], [1.0, 290.0], bounded=False)  # 0 +- 1 and 280 +- 10
    data = torch.tensor([0.5, 300.0])[None, :, None, None]
    x = values.to_float(data)
    torch.testing.assert_close(x.flatten(), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(values.to_data(x), data)
    assert values.levels is values.clip is None


@pytest.mark.parametrize("bounded", [True, False])
def test_values_at_the_ends_of_int32_stay_inside(bounded: bool) -> None:
    values = ValueRange("int32", -(2.0**31), 2.0**31 - 1, bounded)
    found = values.to_data(torch.tensor([-2.0, -1.0, 1.0, 2.0])[None, None, None]).flatten().tolist()
    assert found == [-(2**31), -(2**31), 2**31 - 1, 2**31 - 1]


def test_bytes_of_another_order_are_read_as_the_numbers_that_they_are() -> None:
    numbers = np.array([[1, 65535, 256]], ">u2")
    assert to_tensor(numbers).tolist() == [[1, 65535, 256]]


@pytest.mark.parametrize("levels", [2, 17, 65536])
def test_the_decoder_gives_all_levels_together_the_probability_1(levels: int) -> None:
    x_0 = torch.linspace(-1, 1, levels, dtype=torch.float64)
    for mean, log_variance in ((0.3, -1.0), (-0.99, -5.0)):
        means, logs = torch.full_like(x_0, mean), torch.full_like(x_0, log_variance)
        total = decoder_log_likelihood(x_0, means, logs, levels).exp().sum()
        assert abs(total - 1) < 1e-6


def test_continuous_values_have_no_discretised_decoder() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(UserError, match="continuous values, which have a density"):
        decoder_log_likelihood(x, x, x, None)


def test_x_0_is_clipped_to_the_range_or_not_at_all() -> None:
    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x_t)

    x, schedule = torch.full((1, 1, 2, 2), 5.0), Linear(10)
    clipped, free = (
        Denoiser(network, schedule, values.clip) for values in (UINT8, ValueRange("float32", -1.0, 1.0, False))
    )
    assert clipped(x, 1).x_0.max() == 1
    assert free(x, 1).x_0.max() > 4.9


@pytest.mark.parametrize(
    ("values", "channels", "suffix"),
    [
        (UINT8, 3, ".png"),
        (UINT8, 5, ".npy"),
        (ValueRange("uint16", 0.0, 65535.0), 1, ".png"),
        (ValueRange("uint16", 0.0, 65535.0), 2, ".npy"),
        (ValueRange("float16", 0.0, 1.0), 1, ".npy"),
        (ValueRange("float64", 0.0, 1.0), 1, ".npy"),
    ],
)
def test_samples_are_written_in_their_own_type_to_the_bit(tmp_path, values, channels, suffix) -> None:
    data = values.to_data(torch.rand(2, channels, 4, 6) * 2 - 1)
    write_images(tmp_path, 7, data, values)
    path = get_image_path(tmp_path, 8, suffix)
    read = read_numbered(path, values)
    assert (read.dtype, torch.equal(read, data[1])) == (data.dtype, True)
    array = np.load(path) if suffix == ".npy" else read_png(path, channels)
    assert array.dtype == values.dtype
    assert np.array_equal(array, to_array(data[1], values))
    assert is_whole(path, (channels, 4, 6), values)
    assert not is_whole(path, (channels, 6, 4), values)
    path.write_bytes(path.read_bytes()[:-9])
    assert not is_whole(path, (channels, 4, 6), values)


def test_a_damaged_header_of_a_sample_is_found(tmp_path) -> None:
    path, values, header = get_image_path(tmp_path, 0, ".npy"), ValueRange("float32", 0.0, 1.0), b"{'descr': ('<f4', "
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert not is_whole(path, (1, 4, 6), values)


def read_png(path, channels):
    with Image.open(path) as image:
        array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def test_an_impossible_range_is_refused() -> None:
    for low, high in ((1.0, 1.0), ([0.0, 0.0], [1.0]), (0.0, float("inf"))):
        with pytest.raises(UserError, match="low must lie below their high in every channel"):
            ValueRange("float32", low, high)
    with pytest.raises(UserError, match="values have one of the types uint8, uint16"):
        ValueRange("complex64")
