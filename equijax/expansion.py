"""`python -m equijax.expansion`; the program is `equijax.programs.expansion`."""

import sys

from equijax.programs.expansion import main

if __name__ == "__main__":
    sys.exit(main())
