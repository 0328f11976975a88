"""The process of a command: `raysweep …`, `python -m raysweep …` and `run_sweep.py …` all begin and end here.

It imports little, so that Ctrl-C in the first tenth of a second already gets its one line and its exit status.
"""

import gc
import signal
import sys

from raysweep.system import signals


def main(arguments: list[str] | None = None) -> int:
    """Run the command line in a process of its own; returns its exit status.

    Args:
        arguments: what follows the program's name; None takes them from `sys.argv`.
    """
    try:
        signals.handle_interrupts()
        from raysweep.system.terminal import use_lasting_streams

        use_lasting_streams()
        from raysweep import cli

        return cli.main(arguments)
    except KeyboardInterrupt:
        signals.is_ending = True
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signals.is_ending = True
        signals.ignore_interrupts()  # nothing is left to save, and Ray takes a moment to end
        # Python remembers a KeyboardInterrupt that passed through an `exec` of a string, such as the one in the
        # decorator `dataclass`. `python -m` would then end by SIGINT instead of with this exit status. Another `exec`
        # of a string makes Python forget it.
        exec("")
        if "ray" in sys.modules:
            from raysweep.backends.ray.session import leave

            leave()
        gc.freeze()  # the last garbage collection of the interpreter would visit all objects, which takes 0.8 s


if __name__ == "__main__":
    sys.exit(main())
