"""`python -m equijax.rattle`; the program is `equijax.programs.rattle`."""

import sys

from equijax.programs.rattle import main

if __name__ == "__main__":
    sys.exit(main())
