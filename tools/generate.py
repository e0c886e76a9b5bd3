"""The same as `mmldm generate`."""

import sys

from mmldm.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["generate", *sys.argv[1:]]))
