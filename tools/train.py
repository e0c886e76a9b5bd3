"""The same as `mmldm train`."""

import sys

from mmldm.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
