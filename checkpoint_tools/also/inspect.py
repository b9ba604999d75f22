"""`python -m checkpoint_tools.inspect`: checkpoint_tools.show, by what it does."""

import sys

from checkpoint_tools.show import main

if __name__ == "__main__":
    sys.exit(main())
