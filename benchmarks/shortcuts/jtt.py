"""Just Train Twice by hand (Liu et al. 2021): the errors of a first net count more often in the training of the second."""

import torch
from torch import nn

from shortcuts.tasks import Fields, Task


def repeated(task: Task, first: nn.Module, fields: Fields, weight: int) -> Fields:
    """The training part, with what a first net (trained a little) gets wrong in it `weight` times instead of once."""
    first.eval()
    with torch.no_grad():
        guess = torch.cat([first(part).argmax(1) for part in fields[task.inputs].split(512)])
    wrong = torch.nonzero(guess != fields["label"]).squeeze(1)
    rows = torch.cat([torch.arange(len(guess)), wrong.repeat(weight - 1)])
    return {name: values[rows] for name, values in fields.items()}
