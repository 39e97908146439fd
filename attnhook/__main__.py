"""`python -m attnhook`: the command line."""

import sys

from attnhook.cli import main

if __name__ == "__main__":
    sys.exit(main())
