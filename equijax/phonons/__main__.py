"""`python -m equijax.phonons`; the program is `equijax.programs.phonons`."""

import sys

from equijax.programs.phonons import main

if __name__ == "__main__":
    sys.exit(main())
