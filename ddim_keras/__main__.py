"""Where `ddim-keras`, and `python -m ddim_keras`, begin: nothing is imported before Ctrl-C is
answered in one line, as within a command.
"""

import sys


def start() -> None:
    """Run the command line."""
    try:
        from ddim_keras.cli import main

        main(prog_name="ddim-keras")
    except KeyboardInterrupt:  # before a command has begun, or after it has ended
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


if __name__ == "__main__":
    start()
