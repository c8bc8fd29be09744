"""The same from YAML: `python examples/cli.py fit --config examples/grassy_digits.yaml`."""

from lightning.pytorch.cli import LightningCLI

from lightning_interp.callbacks.parser import NearestNameParser

if __name__ == "__main__":
    LightningCLI(parser_class=NearestNameParser)  # a mistyped name: the last line says what was probably meant
