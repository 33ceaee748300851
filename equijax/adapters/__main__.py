"""`python -m equijax.adapters`; the program is `equijax.programs.adapters`."""

import sys

from equijax.programs.adapters import main

if __name__ == "__main__":
    sys.exit(main())
