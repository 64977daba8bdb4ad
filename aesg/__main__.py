"""`python -m aesg` is `aesg`."""

from aesg.cli.main import main

main()
