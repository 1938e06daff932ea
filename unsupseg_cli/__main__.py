"""The command line as a module: ``python -m unsupseg_cli``."""

from unsupseg_cli.cli.main import main

if __name__ == "__main__":
    main()
