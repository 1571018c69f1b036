"""What the browser sends is read as an image and a mask of the model's size or refused; texts are escaped."""

import base64
import io

import pytest
import torch
from PIL import Image

from lightning_ddpm.commands.demo.components import PNG, encode_image, read_editor, show_images, show_progress
from lightning_ddpm.commands.demo.studio import Frame
from lightning_ddpm.utils.errors import UserError

MASK = "01" * 24


def make_url(size=(8, 6), mode="L", kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return PNG + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_survives_the_browser(channels):
    pixels = torch.randint(0, 256, (channels, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    read, painted = read_editor({"image": encode_image(pixels), "mask": MASK}, (channels, 6, 8))
    assert torch.equal(read, pixels)
    assert painted.shape == (1, 6, 8)
    assert painted.flatten().tolist() == [False, True] * 24


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "there is no image to inpaint"),
        ("/etc/passwd", "there is no image"),
        ({"image": "/etc/passwd", "mask": MASK}, "must be a PNG of 8x6 pixels"),
        ({"image": "file:///etc/passwd", "mask": MASK}, "must be a PNG"),
        ({"image": "http://127.0.0.1/a.png", "mask": MASK}, "must be a PNG"),
        ({"image": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "mask": MASK}, "must be a PNG"),
        ({"image": PNG + "A" * 66304, "mask": MASK}, "must be a PNG of 8x6"),
        ({"image": PNG + "not base64", "mask": MASK}, "in base64"),
        ({"image": PNG + "AAAA", "mask": MASK}, "not an image"),
        ({"image": make_url((6, 8)), "mask": MASK}, "must be a PNG of 8x6 pixels, got 6x8"),
        ({"image": make_url((9000, 9000), "1"), "mask": MASK}, "must be a PNG of 8x6 pixels, got 9000x9000"),
        ({"image": make_url(kind="BMP"), "mask": MASK}, "must be a PNG of 8x6"),
        ({"image": make_url(), "mask": MASK[1:]}, "the mask must have a 0 or a 1 for each of 8x6 pixels"),
        ({"image": make_url(), "mask": "2" * 48}, "the mask"),
        ({"image": make_url(), "mask": list(MASK)}, "the mask"),
        ({"image": make_url()}, "the mask"),
    ],
)
def test_anything_else_is_refused(value, expected):
    with pytest.raises(UserError, match=expected):
        read_editor(value, (1, 6, 8))


def test_names_from_a_checkpoint_are_text_and_no_markup():
    evil = "<img src=x onerror=alert(1)>"
    frame = Frame(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8), [evil], torch.zeros(1, 1, 2, 2).byte(), 2, 2, 2, 0.1, True
    )
    for text in (show_images(frame), show_progress(frame, evil)):
        assert evil not in text
        assert "&lt;img src=x" in text
