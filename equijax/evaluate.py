"""`python -m equijax.evaluate`; the program is `equijax.programs.evaluate`."""

import sys

from equijax.programs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
