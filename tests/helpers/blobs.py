"""Images of a bright column with a table and as pairs, and the configs of small runs on them."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers.command_line import tiny_digits
from PIL import Image

EMBEDDINGS = [{"class_path": f"lightning_ddpm.networks.{name}"} for name in ("VectorEmbedding", "MultiLabelEmbedding")]
IMAGE = [{"class_path": "lightning_ddpm.networks.ConcatenatedImage"}]


def write_blobs(root: Path, n: int = 40) -> Path:
    """Write images of 8x8 with a bright column, a table of their column and brightness, and their halves as inputs."""
    random, rows = np.random.default_rng(0), []
    for index in range(n):
        column, level = int(random.integers(8)), int(random.integers(100, 256))
        image = np.zeros((8, 8), np.uint8)
        image[:, column] = level
        kind = "left" if column < 4 else "right"
        name = f"target/{kind}/{index:02d}.png"
        for path, pixels in ((name, image), (f"input/{kind}/{index:02d}.png", image[::2, ::2])):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
        rows.append(f"{kind}/{index:02d}.png,{column},{level},{int(level > 180)},{column % 2}")
    (root / "target" / "conditions.csv").write_text("file,column,level,bright,odd\n" + "\n".join(rows) + "\n")
    return root


def small_config(folder: Path, conditions: Any, source: Any, root: Path, **more: Any) -> Any:
    """Return the tiny digits' config with this data and these conditions, for two steps."""
    config = tiny_digits(folder)
    config["trainer"].update(max_steps=2, limit_val_batches=1)
    keep = ("EMA", "SampleGrid", "Checkpoints")
    config["trainer"]["callbacks"] = [
        each for each in config["trainer"]["callbacks"] if each["class_path"].endswith(keep)
    ]
    for each in config["trainer"]["callbacks"]:
        each["init_args"].pop("monitor", None)
    config["model"]["init_args"]["network"]["init_args"].update(conditions=conditions, **more)
    config["data"].update(source=source, root=str(root))
    return config


def describe(blobs: Path) -> tuple[Any, Path]:
    """Return the source of the targets with their table, and its root."""
    folder = {"class_path": "ImageFolder", "init_args": {"channels": 1, "size": 8, "holdout": 0.2}}
    columns = {"vector": ["column", "level"], "multilabel": ["bright", "odd"]}
    return {"class_path": "Described", "init_args": {"source": folder, **columns}}, blobs / "target"


def pair(blobs: Path) -> tuple[Any, Path]:
    """Return the source of the pairs, and its root."""
    settings = {"channels": 1, "size": 8, "given_size": 4, "holdout": 0.2}
    return {"class_path": "PairedFolders", "init_args": settings}, blobs
