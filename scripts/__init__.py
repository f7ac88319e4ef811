"""The command line, and everything CI or a contributor runs."""
