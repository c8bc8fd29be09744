"""Digits on grass: train a small network, see that it looks at the grass; train it again with the grass suppressed.

python examples/grassy_digits.py --epochs 15 --seed 0 --log-dir runs

It is `lightning-interp demo`; what that does is to be read in lightning_interp/demo/walk.py.
"""

import sys

from lightning_interp.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
