"""`python -m equijax.screen`; the program is `equijax.programs.screen`."""

import sys

from equijax.programs.screen import main

if __name__ == "__main__":
    sys.exit(main())
