"""The commands of `mmldm`, one file each; cli.py dispatches."""
