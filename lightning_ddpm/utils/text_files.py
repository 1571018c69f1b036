"""Read YAML and JSON that anyone may have written, within bounds: a few lines can describe billions of items."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import read_utf8

MAX_BYTES = 2**24
"""Largest file; a config with 100,000 class names has some 2 MB."""
MAX_DEPTH = 50
"""Deepest nesting."""
MAX_REPEATED = 10_000
"""Most items that aliases (``*name``) may repeat, all together."""

MAX_LENGTH = 20_000
"""Longest list: jsonargparse copies a list once for each of its items."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str, name: str) -> None:
    """Check the nesting and the aliases of YAML before anything is built from it.

    Args:
        text: the YAML.
        name: where it comes from, for the message.

    Raises:
        UserError: it is too long, too deep, or its aliases repeat too much.
        yaml.YAMLError: it is no YAML.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{name} is refused: it has {len(text):,} characters, more than {MAX_BYTES:,}")
    # PyYAML's parser is slow: without aliases and with few brackets, dashes and commas there is nothing to find
    if "*" not in text and sum(map(text.count, "[{-?:,")) <= MAX_DEPTH:
        return
    counts: dict[str, float] = {}
    opened: list[tuple[str | None, float]] = []
    lengths = [0]
    items = repeated = 0.0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.NodeEvent):
            lengths[-1] += 1
            if lengths[-1] > MAX_LENGTH:
                raise UserError(f"{name} is refused: it has a list of more than {MAX_LENGTH:,} items")
        if isinstance(event, yaml.AliasEvent):
            # an alias inside its own anchor has no end, and one without an anchor is an error of the reader
            more = counts.get(event.anchor, math.inf if any(event.anchor == each for each, _ in opened) else 0)
            repeated, items = repeated + more, items + more
            if repeated > MAX_REPEATED:
                raise UserError(f"{name} is refused: its aliases repeat over {MAX_REPEATED:,} items, or themselves")
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, items))
            lengths.append(0)
            items += 1
            if len(opened) > MAX_DEPTH:
                raise UserError(f"{name} is refused: it is more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            lengths.pop()
            if anchor:
                counts[anchor] = items - before
        elif isinstance(event, yaml.ScalarEvent):
            items += 1
            if event.anchor:
                counts[event.anchor] = 1


def read_json(path: Path) -> Any:
    """Return the plain data in a JSON file.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    try:
        return json.loads(read_utf8(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise UserError(f"{path} is not JSON: {first_line(error)}") from error
