"""`python -m sitq` is `sitq`."""

from sitq.cli import main

main()
