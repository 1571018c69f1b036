"""The page's own parts of HTML: images as data URLs, so that no file is written or served, and the editor."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ddpm.commands.demo.studio import Frame
from lightning_ddpm.data.image_io import decode_image, open_image, save_image
from lightning_ddpm.utils.console import count
from lightning_ddpm.utils.errors import UserError

FOLDER = Path(__file__).parent
EDITOR_SCRIPT = (FOLDER / "editor.js").read_text(encoding="utf-8")
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
PNG = "data:image/png;base64,"


def encode_image(pixels: Tensor) -> str:
    """Return an image (1 or 3, h, w) uint8 as the data URL of a PNG."""
    file = io.BytesIO()
    save_image(pixels, file)
    return PNG + base64.b64encode(file.getvalue()).decode()


def show_images(frame: Frame) -> str:
    """Return the images of a frame as HTML, with a title below each if there are any."""
    return _arrange(frame.pixels, frame.titles, "images", "image")


def show_strip(frame: Frame) -> str:
    """Return the path of a last frame's first image as HTML; nothing for another frame."""
    if not frame.is_last:
        return ""
    return f"<p>The first image on its path from noise:</p>{_arrange(frame.strip, (), 'strip', 'moment')}"


def _arrange(pixels: Tensor, titles: Sequence[str], kind: str, word: str) -> str:
    cells = []
    for index, each in enumerate(pixels):
        title = f"<span>{escape(titles[index])}</span>" if titles else ""
        cells.append(f'<div><img src="{encode_image(each)}" alt="{word} {index + 1} of {len(pixels)}">{title}</div>')
    return f'<div class="{kind}">{"".join(cells)}</div>'


def show_progress(frame: Frame, made_by: str = "") -> str:
    """Return what a frame has cost so far as HTML, and below the last one the command that makes the same images."""
    share = f' value="{frame.nfe:g}" max="{frame.total}"' if frame.total else (' value="1"' if frame.is_last else "")
    whole = f" of {frame.total}" if frame.total and not frame.is_last else ""
    cost = f"{count(frame.step, 'step')}, {frame.nfe:g}{whole} network evaluations (NFE) each, {frame.seconds:.1f} s"
    command = (
        f"<p>The same by the command line: <code>{escape(made_by)}</code></p>" if frame.is_last and made_by else ""
    )
    return f'<div class="progress"><progress{share}></progress><p>{cost}</p>{command}</div>'


def show_editor(shape: tuple[int, int, int]) -> str:
    """Return the editor of images of this shape (channels, height, width)."""
    _, height, width = shape
    brush = max(1, min(height, width) // 4)
    return f"""<div class="editor" data-width="{width}" data-height="{height}">
  <canvas width="{width}" height="{height}" aria-label="image to paint over"></canvas>
  <div class="tools">
    <label>Brush <input class="brush" type="range" min="1" max="{max(height, width) // 2}" value="{brush}"></label>
    <label><input class="erase" type="checkbox"> Erase</label>
    <button class="clear" type="button">Clear</button>
    <label class="open" tabindex="0">Open an image<input class="file" type="file" accept="image/*"></label>
    <span class="wrong" role="alert"></span>
  </div>
</div>"""


def read_editor(value: Any, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return what the editor sent: the image (c, h, w) uint8, and where it is painted over, (1, h, w) bool.

    Raises:
        UserError: it holds anything but a PNG and a mask of the model's size.
    """
    channels, height, width = shape
    image, mask = (value.get(name) if isinstance(value, dict) else None for name in ("image", "mask"))
    if not image:
        raise UserError("there is no image to inpaint: generate some, or open one")
    if not isinstance(mask, str) or len(mask) != height * width or set(mask) - {"0", "1"}:
        raise UserError(f"the mask must have a 0 or a 1 for each of {width}x{height} pixels")
    largest = 4 * height * width * 4 // 3 + 65536  # the pixels without compression, in base64, and a header
    if not isinstance(image, str) or not image.startswith(PNG) or len(image) > largest:
        raise UserError(f"the image must be a PNG of {width}x{height} pixels")
    try:
        data = base64.b64decode(image.removeprefix(PNG), validate=True)
    except ValueError as error:
        raise UserError("the image must be a PNG in base64") from error
    with open_image(io.BytesIO(data)) as opened:
        if opened.format != "PNG" or opened.size != (width, height):
            raise UserError(f"the image must be a PNG of {width}x{height} pixels, got {opened.width}x{opened.height}")
        pixels = decode_image(opened, channels, (height, width))
    painted = torch.tensor([each == "1" for each in mask]).reshape(1, height, width)
    return pixels, painted
