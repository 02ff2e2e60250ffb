"""The command line as ``python -m aim_adapters``."""

from aim_adapters.cli import main

if __name__ == "__main__":
    main()
