"""`python -m mixer_finetune` and the script `mixer-finetune`."""

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    from mixer_finetune.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
