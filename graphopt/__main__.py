"""``python -m graphopt``: the command line."""

from graphopt.cli.entry import main

main()
