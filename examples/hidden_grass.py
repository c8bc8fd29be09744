"""Nobody has labelled the grass: find what the network uses besides the digit, look at it, name it, suppress it.

The labels of the grass are hidden from everything but the last table, which checks what came out.

python examples/hidden_grass.py --epochs 15 --seed 0 --log-dir runs
"""

import argparse
import base64
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

import lightning_interp as interp
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel

DIGIT, GRASS = interp.Concept("digit"), interp.Confounder("grass", intervention="lightning_interp.demo:swap_background")
PLACES = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}


def train(name, args, *callbacks):
    """Train the demo's network once."""
    L.seed_everything(args.seed, verbose=False)
    model, data = GrassyDigitsModel(), GrassyDigitsData(seed=args.seed)
    logger = TensorBoardLogger(args.log_dir, name=f"hidden_grass/{name}")
    L.Trainer(max_epochs=args.epochs, callbacks=list(callbacks), logger=logger, log_every_n_steps=1).fit(model, data)
    return model, Path(logger.log_dir)


def checked(model, seed, promoted):
    """On the test digits: what the true labels and the exact intervention say, and how often the promoted label is right."""
    batches = list(GrassyDigitsData(seed=seed).test_dataloader())
    event = interp.explain(model, batches, [DIGIT, GRASS], measures=["contribution", "groups", "intervention"], **PLACES)
    agreement = torch.cat([promoted.read(b)[0] == b["grass"] for b in batches]).double().mean().item()
    return {
        "worst group": event.groups.worst_accuracy,
        "do(grass), logits": event.intervention["grass"].value,
        "share of grass": event.contribution["grass"].value,
        "label found = true label": max(agreement, 1 - agreement),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", default="runs")
    args = parser.parse_args()

    monitor = interp.ConceptMonitor([DIGIT], **PLACES)
    discover = interp.DiscoverFeatures("encoder.conv4", [DIGIT], **PLACES)
    plain, where = train("plain", args, monitor, discover)
    print(f"\n1. The digit explains little of what the network says.\n{monitor.latest}")

    suspect = discover.latest.features[0]
    print(f"\n2. What else does it use?\n{discover.latest}")
    for side, samples in (("strongest", suspect.strongest), ("weakest", suspect.weakest)):
        (where / f"{side}.png").write_bytes(base64.b64decode(samples["png"]))
    print(f"\n3. Look at {suspect.name}: {where}/strongest.png and weakest.png show one kind of background each.")

    background = discover.promote(suspect.name, "background")  # no labels: a frozen copy of the network reads it
    watch = interp.ConceptMonitor([DIGIT, background], **PLACES)
    suppress = interp.SuppressConfounder(background, given=[DIGIT], budget=0.02, inputs="image", output="head", target="label")
    suppressed, _ = train("suppressed", args, watch, suppress)
    print(f"\n4. Named and suppressed.\n{watch.latest}")

    columns = {"plain": checked(plain, args.seed, background), "suppressed": checked(suppressed, args.seed, background)}
    print(f"\n5. The labels that were hidden say\n  {'test digits':<26}" + "".join(f"{name:>12}" for name in columns))
    for row in columns["plain"]:
        print(f"  {row:<26}" + "".join(f"{column[row]:>12.3f}" for column in columns.values()))


if __name__ == "__main__":
    main()
