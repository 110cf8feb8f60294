"""`python -m csrtrain`."""

import sys

from csrtrain.cli import main

sys.exit(main())
