"""`python -m equijax.select`; the program is `equijax.programs.select`."""

import sys

from equijax.programs.select import main

if __name__ == "__main__":
    sys.exit(main())
