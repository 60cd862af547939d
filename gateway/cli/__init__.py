"""The commands of the ``gateway`` program."""
