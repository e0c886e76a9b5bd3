"""The same as `mmldm encode`."""

import sys

from mmldm.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["encode", *sys.argv[1:]]))
