"""The documentation as tests: its samples are run, its tables compared, its links followed."""
