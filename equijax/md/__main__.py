"""`python -m equijax.md`; the program is `equijax.programs.md`."""

import sys

from equijax.programs.md import main

if __name__ == "__main__":
    sys.exit(main())
