"""Run the command line: ``python -m lightning_ddpm COMMAND``."""

import sys

from lightning_ddpm.commands.main import main
from lightning_ddpm.utils.huge_pages import restart_with_huge_pages


def run() -> int:
    """Run this process as the program; return its exit status."""
    if len(sys.argv) > 1 and not {"-h", "--help", "--version"}.intersection(sys.argv):  # help appears at once
        restart_with_huge_pages()
    return main()


if __name__ == "__main__":
    sys.exit(run())
