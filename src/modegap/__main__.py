"""`python -m modegap`: the command line."""

import sys

from modegap.cli import main

if __name__ == "__main__":
    sys.exit(main())
