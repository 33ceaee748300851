"""`python -m equijax.finetune`; the program is `equijax.programs.finetune`."""

import sys

from equijax.programs.finetune import main

if __name__ == "__main__":
    sys.exit(main())
