"""Commands: each file is a program."""
