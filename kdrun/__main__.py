"""`python -m kdrun` is the command `kdrun`."""

import sys

from kdrun.cli import run

sys.exit(run())
