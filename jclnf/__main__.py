"""`python -m jclnf`: the command line."""

import sys

from jclnf.cli import main

if __name__ == "__main__":
    sys.exit(main())
