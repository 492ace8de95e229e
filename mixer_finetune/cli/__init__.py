"""The command line: what was typed, what is shown, and the exit status."""
