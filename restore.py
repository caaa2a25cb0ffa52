"""Restore photos: python restore.py input=<file or folder> output=<folder> [ckpt=…]."""

from dit4sr.cli import restore_main

if __name__ == "__main__":
    restore_main()
