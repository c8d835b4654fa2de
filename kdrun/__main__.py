"""`python -m kdrun` is the command `kdrun`."""

from kdrun.cli import main

main()
