"""`python -m deepcomp` is the command."""

import sys

from deepcomp.cli import main

sys.exit(main())
