"""``python -m lightning_ddpm``."""

import sys

from lightning_ddpm.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
