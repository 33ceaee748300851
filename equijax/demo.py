"""`python -m equijax.demo`; the program is `equijax.programs.demo`."""

import sys

from equijax.programs.demo import main

if __name__ == "__main__":
    sys.exit(main())
