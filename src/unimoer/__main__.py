"""`python -m unimoer`."""

from unimoer.cli import main

# A worker imports this file too.
if __name__ == "__main__":
    main()
