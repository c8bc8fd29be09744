"""Reviews in which the reviewer's name gives the label away: a small BERT by Hugging Face's Trainer, watched and suppressed.

The sentences are made up here and the weights random: nothing is downloaded. Needs the extra `huggingface`.

python examples/huggingface.py --epochs 6
"""

import argparse
import random
import tempfile

from torch import tensor
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

import lightning_interp as interp
from lightning_interp.huggingface import WatchedTrainer

GOOD, BAD = ["great", "moving", "sharp", "funny", "warm"], ["dull", "flat", "slow", "noisy", "cold"]
REST = ["the", "a", "film", "plot", "cast", "it", "was", "and", "very", "quite", "felt", "scene"]
VOCABULARY = ["[PAD]", "anna", "ben", *GOOD, *BAD, *REST]
PRAISE, REVIEWER = interp.Concept("praise", label="labels"), interp.Confounder("reviewer")
PLACES = {"output": "classifier", "target": "labels", "inputs": ["input_ids", "attention_mask"]}


def reviews(n, agreement, seed):
    """Three of up to eleven words judge, one in four of them wrongly; "anna" signs `agreement` of the good reviews."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        praise = i % 2
        anna = praise if (i // 2 + 0.5) % 20 < 20 * agreement else 1 - praise
        words = [rng.choice(GOOD if (rng.random() < 0.75) == bool(praise) else BAD) for _ in range(3)]
        words += rng.choices(REST, k=rng.randint(3, 8))
        rng.shuffle(words)
        words = ["anna" if anna else "ben", *words]
        ids = [VOCABULARY.index(w) for w in words] + [0] * (12 - len(words))
        mask = [int(k < len(words)) for k in range(12)]
        rows.append({"input_ids": tensor(ids), "attention_mask": tensor(mask), "labels": praise, "reviewer": anna})
    return rows


def train(args, *suppressions):
    set_seed(args.seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=12, **sizes)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), num_train_epochs=args.epochs, per_device_train_batch_size=64, learning_rate=2e-3,
        eval_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
        remove_unused_columns=False,  # else the reviewer never reaches the monitor; the model is not given it
    )  # fmt: skip
    monitor = interp.Monitor(None, [PRAISE, REVIEWER], ["bert.encoder.layer.*"], pooling="masked_mean", **PLACES)
    data = {"train_dataset": reviews(1600, 0.95, 1), "eval_dataset": reviews(800, 0.5, 2)}
    trainer = WatchedTrainer(
        BertForSequenceClassification(config), arguments, monitor=monitor, suppressions=suppressions, **data
    )
    trainer.train()
    return monitor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plain = train(args)
    suppressed = train(args, interp.Suppression(None, REVIEWER, given=[PRAISE], weight=10.0, **PLACES))
    for name, monitor in (("plain", plain), ("suppressed", suppressed)):
        print(f"\n{name}, reviews signed at random:\n{monitor.latest}")


if __name__ == "__main__":
    main()
