"""The process of a command: `raysweep …`, `python -m raysweep …` and `run_sweep.py …` all begin and end here.

It imports little, so that Ctrl-C in the first tenth of a second already gets its one line and its exit status.
"""

import gc
import signal
import sys

from raysweep.system.signals import handle_interrupts, ignore_interrupts


def main(arguments: list[str] | None = None) -> int:
    """Run the command line in a process of its own; returns its exit status.

    Args:
        arguments: what follows the program's name; None takes them from `sys.argv`.
    """
    try:
        handle_interrupts()
        from raysweep.system.terminal import use_lasting_streams

        use_lasting_streams()
        from raysweep import cli

        return cli.main(arguments)
    except KeyboardInterrupt:
        ignore_interrupts()
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        ignore_interrupts()  # nothing is left to save, and Ray takes a moment to end
        # If KeyboardInterrupt left an `exec` of a string, as `dataclass` uses it, `python -m` ends by SIGINT and not
        # with the exit status. The next `exec` of a string clears this.
        exec("")
        if "ray" in sys.modules:
            from raysweep.backends.ray.session import leave

            leave()
        gc.freeze()  # the last garbage collection of the interpreter would visit all objects, which takes 0.8 s


if __name__ == "__main__":
    sys.exit(main())
