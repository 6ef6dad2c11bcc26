"""``python -m pe_triage`` is ``pe-triage``."""

import sys

from pe_triage.cli import main

if __name__ == "__main__":
    sys.exit(main())
