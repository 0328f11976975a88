"""`run_sweep.py` with much longer times within which trials must save and Ray must end.

A test of what the command says and saves uses this program, so that its outcome does not depend on how busy the machine
is. Run it with `tests.support.forked` in place of `run_sweep.py`; it shows itself as `run_sweep.py`.
"""

import runpy
import sys
import threading
import time

from raysweep.backends import stopping
from raysweep.system import signals
from tests.support import PATIENCE, ROOT

HEALTH = "raysweep.backends.ray.health"


def be_patient():
    """Lengthen the times. The module of Ray's health is changed once the command imports it, and Ray with it."""
    stopping.GRACE_SECONDS = stopping.ENDING_SECONDS = PATIENCE
    stopping.REPEATED_SECONDS = signals.REPEATED_SECONDS = PATIENCE
    threading.Thread(target=lengthen_the_last_seconds, daemon=True).start()


def lengthen_the_last_seconds():
    while not hasattr(sys.modules.get(HEALTH), "LEAVE_SECONDS"):
        time.sleep(0.05)
    # The driver does not always learn from dead servers that the trials have left. Then it waits for all of this time.
    sys.modules[HEALTH].LEAVE_SECONDS = PATIENCE / 20


if __name__ == "__main__":
    be_patient()
    sys.argv[0] = sys.orig_argv[1] = str(ROOT / "run_sweep.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
