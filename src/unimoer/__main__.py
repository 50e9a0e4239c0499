"""`python -m unimoer`."""

from unimoer.cli import main

main()
