"""The text form that samplers, objectives, weights, degradations and guidance share."""

from torch import Tensor


def format_call(name: str, settings: dict[str, object]) -> str:
    """Return ``Name(setting=value, ...)``; a function appears by its name."""
    values = ", ".join(f"{setting}={getattr(value, '__name__', value)}" for setting, value in settings.items())
    return f"{name}({values})"


def format_settings(owner: object) -> str:
    """Return ``Class(attribute=value, ...)``: the ``__repr__`` that messages print and ``set.json`` records.

    Attributes that are tensors, such as the observation of a restoration, are skipped.
    """
    settings = {name: value for name, value in vars(owner).items() if not isinstance(value, Tensor)}
    return format_call(type(owner).__name__, settings)
