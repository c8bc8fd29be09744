"""The same from YAML: `python examples/cli.py fit --config examples/grassy_digits.yaml`."""

from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI()
