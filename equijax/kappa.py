"""`python -m equijax.kappa`; the program is `equijax.programs.kappa`."""

import sys

from equijax.programs.kappa import main

if __name__ == "__main__":
    sys.exit(main())
