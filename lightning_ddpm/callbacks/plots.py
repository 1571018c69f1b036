"""Plots as images, made without matplotlib's global state."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def create_figure() -> "Figure":
    """Return an empty figure of 800x500 pixels."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(8, 5), dpi=100, layout="constrained")


def render_figure(figure: "Figure") -> Tensor:
    """Return the figure's pixels, (3, H, W) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1)
