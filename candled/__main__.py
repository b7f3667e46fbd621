"""`python -m candled` is `candled`."""

import sys

from candled.cli import main

sys.exit(main())
