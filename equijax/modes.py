"""`python -m equijax.modes`; the program is `equijax.programs.modes`."""

import sys

from equijax.programs.modes import main

if __name__ == "__main__":
    sys.exit(main())
