"""`python -m jobs` is the command line."""

from jobs.cli.app import main

main()
