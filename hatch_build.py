"""What the repository keeps beside the package stands in the package of a wheel; utils/shipped.py finds either."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = {"configs": "configs", "checkpoints/pretrained": "pretrained", "template": "template"}


class ShippedFiles(BuildHookInterface):
    """Adds them to a wheel, but not to an editable installation, which finds them where they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files before a wheel is built."""
        if version == "standard":
            inside = {folder: f"lightning_ddpm/{name}" for folder, name in SHIPPED.items()}
            build_data["force_include"].update(inside)
