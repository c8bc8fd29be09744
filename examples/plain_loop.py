"""Digits on grass in a plain PyTorch loop, with no Trainer: watched, then with the grass suppressed.

python examples/plain_loop.py --epochs 15 --seed 0
"""

import argparse

import torch
from torch.nn import functional as F

import lightning_interp as interp
from lightning_interp.demo import GrassyDigitsData, SmallCNN

DIGIT = interp.Concept("digit")
GRASS = interp.Confounder("grass", intervention="lightning_interp.demo:swap_background")
PLACES = {"output": "head", "target": "label", "inputs": "image"}


def train(args, budget=None):
    """Train once; with a budget, the grass is held under it. Returns the monitor and an event on the test digits."""
    torch.manual_seed(args.seed)
    data = GrassyDigitsData(seed=args.seed)
    training, validation = data.train_dataloader(), data.val_dataloader()
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    monitor = interp.Monitor(model, [DIGIT, GRASS], layers=["encoder.conv*"], cluster="source", **PLACES)
    suppression = None if budget is None else interp.Suppression(model, GRASS, given=[DIGIT], budget=budget, **PLACES)
    step = 0
    for epoch in range(args.epochs):
        model.train()
        for batch in training:
            if suppression is None or epoch < 2:
                loss = F.cross_entropy(model(batch["image"]), batch["label"])
            else:
                with suppression.watching(batch):
                    loss = F.cross_entropy(model(batch["image"]), batch["label"])
                loss = loss + suppression.penalty(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

        model.eval()
        with torch.no_grad():
            for batch in validation:
                with monitor.watching(batch):
                    model(batch["image"])
        event = monitor.event(step, epoch)
        if suppression is not None:
            suppression.observe(event)  # the multiplier answers to the held-out digits
    measures = ["contribution", "groups", "intervention"]
    return monitor, interp.explain(model, data.test_dataloader(), [DIGIT, GRASS], measures=measures, cluster="source", **PLACES)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tests = {}
    for name, budget in (("plain", None), ("suppressed", 0.02)):
        monitor, tests[name] = train(args, budget)
        print(f"\n{name}, validation digits:\n{monitor.latest}")
    rows = {
        "worst group": lambda e: e.groups.worst_accuracy,
        "do(grass), logits": lambda e: e.intervention["grass"].value,
        "share of grass": lambda e: e.contribution["grass"].value,
    }
    print(f"\n  {'test digits':<20}" + "".join(f"{name:>12}" for name in tests))
    for row, value in rows.items():
        print(f"  {row:<20}" + "".join(f"{value(e):>12.3f}" for e in tests.values()))


if __name__ == "__main__":
    main()
