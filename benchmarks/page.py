"""The tables of a page, which scripts write between its marks."""

from collections.abc import Iterable
from pathlib import Path


def put(page: Path, name: str, lines: Iterable[str]) -> None:
    """Have these lines stand between ``<!-- name -->`` and the next ``<!-- end -->``, in place of what is there.

    Raises:
        ValueError: the page has no such marks.
    """
    before, mark, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    if not mark or not end:
        raise ValueError(f"{page} has no marks <!-- {name} --> and <!-- end -->")
    page.write_text("".join([before, mark, *(f"{line}\n" for line in lines), end, after]))
