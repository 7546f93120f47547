"""``python -m ncp_callbacks`` is ``ncp-callbacks``."""

import sys

from .cli import main

sys.exit(main())
