"""`python -m dca_fast` is the command line."""

import sys

from dca_fast.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
