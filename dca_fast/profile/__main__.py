"""`python -m dca_fast.profile`."""

import sys

from dca_fast.profile.run import main

sys.exit(main())
