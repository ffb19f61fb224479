"""``python -m accel`` is `accelctl`."""

import sys

from accel.cli import main

sys.exit(main())
