"""What is printed cannot steer a terminal, and nothing is printed of no work."""

import io

import pytest

from lightning_ddpm.utils import console
from lightning_ddpm.utils.console import make_printable, report, show_progress


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("cat, caf\u00e9, \u732b, \U0001f600", "cat, caf\u00e9, \u732b, \U0001f600"),
        ("a\xa0b\u3000c", "a\xa0b\u3000c"),
        ("two\nlines\tof text", "two\nlines\tof text"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("back\x08space \r over \x7f", r"back\x08space \r over \x7f"),
        ("\x9b31m \u202eltr \u2028", r"\x9b31m \u202eltr \u2028"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_control_characters_are_escaped(text, printed, capsys) -> None:
    assert make_printable(text) == printed
    report(text)
    assert capsys.readouterr().out == f"{printed}\n"


def test_the_progress_of_no_work_prints_nothing(capsys) -> None:
    assert list(show_progress([], 0, "sampling")) == []
    assert capsys.readouterr().out == ""
    assert list(show_progress([(2, "batch")], 2, "sampling")) == ["batch"]
    assert capsys.readouterr().out.startswith("sampling: 2 in 0 s, ")


def test_a_progress_bar_shows_a_name_as_it_is(monkeypatch) -> None:
    """Neither as the markup of rich nor as control characters."""
    shown = io.StringIO()
    terminal = console.Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setattr(console, "Console", lambda: terminal)
    assert list(show_progress([(2, "batch")], 2, "[red]\x1b]0;title\x07")) == ["batch"]
    assert r"[red]\x1b]0;title\x07" in shown.getvalue()
