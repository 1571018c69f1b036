"""Run the command line: ``python -m lightning_ddpm COMMAND``."""

import sys

from lightning_ddpm.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
