"""`WatchedTrainer`: what Lightning finds in the same net, the weights of the penalty by hand, and nothing changed."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callbacks import boring
from callbacks.boring import bits, streams
from lightning.pytorch import LightningModule, seed_everything
from test_monitor import assert_close
from test_suppression import Hand
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_interp import Concept, ConceptMonitor, Confounder, Monitor, Suppression
from lightning_interp.errors import InterpError, InterpWarning
from loops.net import EPOCHS, LR, WEIGHT

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
hf = importlib.import_module("lightning_interp.huggingface")

pytestmark = boring.HOST_WARNINGS

BATCH, TOKENS = 16, 6
ROOT = Path(__file__).parent.parent.parent
MOO, GRASS = Concept("moo", label="labels"), Confounder("grass")
TEXT = {"output": "classifier", "target": "labels", "inputs": ["input_ids", "attention_mask"]}


class Sentences(Dataset):
    """Random tokens: 1 where a cow moos, 2 where it stands on grass, in a random order; the last ones are padding."""

    def __init__(self, n, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.moo = torch.arange(n) % 2
        self.grass = torch.where(torch.arange(n) // 2 % 8 < 3, 1 - self.moo, self.moo)
        self.ids = torch.randint(3, 20, (n, TOKENS), generator=g)
        self.ids[:, 0] = torch.where(self.moo == 1, 1, self.ids[:, 0])
        self.ids[:, 1] = torch.where(self.grass == 1, 2, self.ids[:, 1])
        self.mask = (torch.arange(TOKENS) < torch.randint(3, TOKENS + 1, (n, 1), generator=g)).long()

    def __len__(self):
        return len(self.moo)

    def __getitem__(self, i):
        ids = torch.where(self.mask[i] == 1, self.ids[i], 0)
        return {"input_ids": ids, "attention_mask": self.mask[i], "labels": self.moo[i], "grass": self.grass[i]}


class Pictures(Sentences):
    """The same as pictures: the two upper patches."""

    def __getitem__(self, i):
        x = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i))
        x[:, :4, :4] += self.moo[i]
        x[:, :4, 4:] += self.grass[i]
        return {"pixel_values": x, "labels": self.moo[i], "grass": self.grass[i]}


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bert(dropout=0.0):
    config = transformers.BertConfig(
        vocab_size=20,
        max_position_embeddings=TOKENS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **SMALL,
    )
    return transformers.BertForSequenceClassification(config)


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_dropout_prob=0.0, **SMALL)
    return transformers.ViTForImageClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=20,
        n_positions=TOKENS,
        n_embd=8,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return transformers.GPT2ForSequenceClassification(config)


NETS = {
    "bert": (bert, Sentences, TEXT, ["bert.encoder.layer.*"]),
    "vit": (vit, Pictures, {**TEXT, "inputs": ["pixel_values"]}, ["vit.layers.*"]),
    "gpt2": (gpt2, Sentences, {**TEXT, "output": None}, ["transformer.h.*"]),
}


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), LR)


def trainer(folder, model, data=Sentences, monitor=None, suppressions=(), cls=None, rows=(96, 80), **options):
    options = {
        "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH,
        "max_grad_norm": 0.0, "eval_strategy": "epoch", "save_strategy": "no", "logging_strategy": "epoch", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False, "train_sampling_strategy": "sequential",
        "seed": 0, "lr_scheduler_type": "constant", "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    args = transformers.TrainingArguments(output_dir=str(folder), **options)
    sets = {"train_dataset": data(rows[0], 1), "eval_dataset": data(rows[1], 2), "optimizers": (optimizer_of(model), None)}
    ours = {"monitor": monitor, "suppressions": suppressions}
    return (cls or hf.WatchedTrainer)(model, args, data_collator=default_collate, **sets, **({} if cls else ours))


def made(net, **options):
    seed_everything(0, verbose=False)
    return net(**options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def watch(places=TEXT, layers=("bert.encoder.layer.*",), **options):
    options = {"pooling": "masked_mean", "measures": boring.ALL[:5], "warn_above": float("inf"), **places, **options}
    return Monitor(None, [MOO, GRASS], list(layers), **options)


class LightningText(LightningModule):
    """The same net as Lightning trains it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, **inputs):
        return self.net(**inputs)

    def training_step(self, batch, batch_idx):
        known = {k: v for k, v in batch.items() if k != "grass"}
        return self(**known, num_items_in_batch=torch.tensor(float(len(batch["labels"])))).loss

    def validation_step(self, batch, batch_idx):
        self(**{k: v for k, v in batch.items() if k != "grass"})

    def configure_optimizers(self):
        return optimizer_of(self)


@pytest.mark.parametrize("name", NETS)
def test_events_are_those_of_a_lightning_run(tmp_path, name):
    net, data, places, layers = NETS[name]
    monitor = watch(places, layers)
    run = trainer(tmp_path, made(net), data, monitor)
    run.train()

    output = places["output"] and f"net.{places['output']}"
    options = {**places, "output": output, "pooling": "masked_mean", "measures": boring.ALL[:5], "warn_above": float("inf")}
    callback = ConceptMonitor([MOO, GRASS], [f"net.{layer}" for layer in layers], **options)
    module = LightningText(made(net))
    loaders = (DataLoader(data(n, seed), BATCH) for n, seed in ((96, 1), (80, 2)))
    boring.trainer(callback, max_epochs=EPOCHS).fit(module, *loaders)

    assert torch.equal(weights(run.model), weights(module))
    assert len(monitor.history) == EPOCHS
    for one, other in zip(monitor.history, callback.history, strict=True):
        assert len(one.decodability) == 2
        assert_close(boring.plain(one), without_net(boring.plain(other)))


def without_net(found):
    """Layers named below the net."""
    if isinstance(found, dict):
        return {k.removeprefix("net.") if isinstance(k, str) else k: without_net(v) for k, v in found.items()}
    return [without_net(v) for v in found] if isinstance(found, list) else found


# --- the penalty ------------------------------------------------------------------------------------------------------


class Bag(torch.nn.Module):
    """No model of theirs: a forward that names what it takes, and returns a dict."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed, self.dropout = torch.nn.Embedding(20, 8), torch.nn.Dropout(dropout)
        self.classifier = torch.nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask, labels=None):
        h = (self.dropout(self.embed(input_ids)) * attention_mask.unsqueeze(2)).sum(1)
        logits = self.classifier(h)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


class ByHand(transformers.Trainer):
    """The penalty as users write it: mean losses, divided by the batches of the step."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(**{k: v for k, v in inputs.items() if k != "grass"})["logits"]
        loss = F.cross_entropy(logits, inputs["labels"])
        if model.training:
            loss = loss + self.hand(logits, {"grass": inputs["grass"], "moo": inputs["labels"]}, loss)
        return (loss, {"logits": logits}) if return_outputs else loss


def suppression(**options):
    return Suppression(None, GRASS, [MOO], **{"weight": WEIGHT, **TEXT, **options})


@pytest.mark.parametrize(
    ("net", "output", "options", "divided", "close"),
    [
        (Bag, "classifier", {}, True, 0.0),
        (Bag, None, {"gradient_accumulation_steps": 4}, True, 0.0),  # the last step of an epoch has two batches
        (vit, None, {}, True, 1e-6),  # their loss is a sum over a count, not a mean
        (vit, "classifier", {"gradient_accumulation_steps": 4}, True, 1e-6),
        (bert, "classifier", {"gradient_accumulation_steps": 4}, False, 1e-6),  # their BERT's loss leaves the count out
    ],
)
def test_weights_are_those_of_the_penalty_by_hand(tmp_path, net, output, options, divided, close):
    data = Pictures if net is vit else Sentences
    model = made(net)
    s = suppression(output=output)
    trainer(tmp_path, model, data, suppressions=[s], **options).train()
    other = made(net)
    run = trainer(tmp_path, other, data, cls=ByHand, **options)
    run.hand, run.loss_is_scaled_for_ga = Hand(weight=WEIGHT), not divided
    run.train()
    found, wanted = weights(model), weights(other)
    assert torch.equal(found, wanted) if close == 0 else torch.allclose(found, wanted, rtol=0, atol=close)
    assert s.acted == len(run.hand.terms) == 11
    assert max(map(abs, run.hand.terms)) > 0
    assert boring.hooks(model) == 0


def test_the_users_own_loss_function_counts_as_theirs(tmp_path):
    """`compute_loss_func` divides by the count itself, as they ask of it; label smoothing does too."""

    def run(folder, **given):
        model = made(bert)
        s = suppression(balance=False)
        made_trainer = trainer(folder, model, suppressions=[s], gradient_accumulation_steps=2, **given)
        if not given:
            made_trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch: (
                F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
            )
        made_trainer.train()
        return s.last["penalty_scale"], weights(model)

    scale, found = run(tmp_path)
    smoothed, _ = run(tmp_path, label_smoothing_factor=1e-7)
    assert torch.isclose(scale, smoothed, rtol=1e-2)
    model = made(bert)
    other = trainer(tmp_path, model, cls=ByHand, gradient_accumulation_steps=2)
    other.hand = Hand(weight=WEIGHT, balance=False)
    other.train()
    assert torch.allclose(found, weights(model), rtol=0, atol=1e-6)


# --- watching changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_watching_changes_no_bit(tmp_path, options):
    def run(monitor):
        model = made(bert, dropout=0.2)
        it = trainer(tmp_path, model, monitor=monitor, train_sampling_strategy="random", **options)
        it.train()
        losses = [line["eval_loss"] for line in it.state.log_history if "eval_loss" in line]
        return (
            bits(model.state_dict()),
            bits(it.optimizer.state_dict()),
            streams(),
            losses,
            [m.training for m in model.modules()],
        )

    monitor = watch(measures=boring.ALL[:5])
    assert run(monitor) == run(None)
    assert len(monitor.history) == EPOCHS


# --- what a run gives -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with a monitor, a penalty, checkpoints and TensorBoard."""
    folder = tmp_path_factory.mktemp("full")
    monitor, s = watch(), suppression(budget=0.02, weight=None)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "runs")
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_contribution/grass", "greater_is_better": False}
    run = trainer(folder, made(bert), Sentences, monitor, [s], report_to=["tensorboard"], save_strategy="epoch", **best)
    run.train()
    return run


def test_what_is_measured_is_logged_and_can_be_selected_on(full):
    lines = [line for line in full.state.log_history if "eval_loss" in line]
    for line, event in zip(lines, full.monitor.history, strict=True):
        assert {f"eval_{k}": v for k, v in event.scalars().items()}.items() <= line.items()
        assert line["step"] == event.step
    assert [e.epoch for e in full.monitor.history] == [0, 1]
    assert full.state.best_metric == min(e.contribution["grass"].value for e in full.monitor.history)
    assert any("penalty/grass" in line and "penalty_weight/grass" in line for line in full.state.log_history)
    assert full.suppressions[0].measured is full.monitor.latest


def test_tensorboard_gets_what_lightnings_gets(full):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((Path(full.args.output_dir) / "runs").rglob("events.out.tfevents*")).parent
    found = EventAccumulator(str(folder))
    found.Reload()
    assert "eval/contribution/grass" in found.Tags()["scalars"]
    assert {"eval/interp/event", "eval/equation/text_summary"} <= set(found.Tags()["tensors"])
    assert "eval/decodability" in found.Tags()["images"]


def test_a_checkpoint_holds_plain_types(full):
    state = torch.load(next(Path(full.args.output_dir).glob("checkpoint-*")) / hf.STATE_NAME, weights_only=True)
    assert len(state["suppressions"]) == 1


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, options):
    class Stop(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    def run(folder, stop=False, resume=None):
        monitor, s = watch(TEXT, ["embed"]), suppression()
        it = trainer(folder, made(Bag, dropout=0.2), Sentences, monitor, [s], save_strategy="epoch", **options)
        if stop:
            it.add_callback(Stop)
        it.train(resume_from_checkpoint=resume)
        return weights(it.model), [boring.plain(event) for event in monitor.history], s.acted

    whole = run(tmp_path / "whole")
    half = run(tmp_path / "half", stop=True)
    again = run(tmp_path / "half", resume=True)
    assert len(half[1]) == 1
    assert torch.equal(again[0], whole[0])
    assert again[1:] == whole[1:]


def test_a_budget_without_a_monitor_reads_the_training_batches(tmp_path):
    s = suppression(budget=0.02, weight=None)
    with pytest.warns(InterpWarning, match="training batches"):
        trainer(tmp_path, made(Bag), suppressions=[s]).train()
    assert s.measured.mode == "train"


def test_labels_that_the_trainer_would_drop_are_named(tmp_path):
    with pytest.raises(
        InterpError, match="`remove_unused_columns=True` takes 'grass', the label of 'grass', out of every batch"
    ):
        trainer(tmp_path, made(bert), monitor=watch(), remove_unused_columns=True)
    tokens = Confounder("grass", label=lambda batch: (batch["input_ids"] == 2).any(1))
    monitor = Monitor(None, [MOO, tokens], warn_above=float("inf"), **TEXT)
    run = trainer(tmp_path, made(bert), monitor=monitor, remove_unused_columns=True)
    run.train()
    assert run.monitor.latest.contribution["grass"].value is not None


def test_no_hook_outlives_an_exception(tmp_path):
    class Fails(Bag):
        def forward(self, input_ids, attention_mask, labels=None):
            if not self.training:
                raise RuntimeError("out of memory")
            return super().forward(input_ids, attention_mask, labels)

    model = made(Fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path, model, Sentences, watch(TEXT, ["embed"]), [suppression()]).train()
    assert boring.hooks(model) == 0


def test_other_evaluations_and_predictions_are_not_events(tmp_path):
    run = trainer(tmp_path, made(bert), monitor=watch())
    run.evaluate(metric_key_prefix="test")
    run.predict(Sentences(32, 3))
    assert run.monitor.latest is None
    assert "eval_contribution/grass" in run.evaluate()
    assert len(run.monitor.history) == 1


def test_half_precision(tmp_path):
    def run(output):
        monitor, s = watch({**TEXT, "output": output}), suppression(output=output, weight=1e4, balance=False)
        run = trainer(tmp_path, made(bert), Sentences, monitor, [s], bf16=True)
        run.train()
        assert len(monitor.history) == EPOCHS
        return s.acted, float(s.last["penalty_scale"])

    acted, scale = run("classifier")
    assert acted == 11
    assert scale < 0.5
    assert run(None) == (acted, pytest.approx(scale, rel=0.5))  # of a copy, which the loss inside has not seen


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_measure_what_one_does(tmp_path):
    """75 rows on two processes: the last batches are padded, and the padding is left out."""
    for processes in (1, 2):
        launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        path = os.pathsep.join(map(str, (ROOT / "tests", ROOT, *filter(None, [os.environ.get("PYTHONPATH")]))))
        command = [sys.executable, *launch, str(ROOT / "tests" / "loops" / "by_torchrun.py"), str(tmp_path)]
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=env, timeout=300, check=True, capture_output=True)
    one, two = (torch.load(tmp_path / f"{processes}.pt", weights_only=False) for processes in (1, 2))
    assert one["event"]["n"] == 75
    assert_close(two["event"], one["event"])
    assert two["scale"] == one["scale"] == 1.0  # the loss that a step of one batch is, in both
    for found in (one, two):
        assert found["watched"] == found["unwatched"]
        assert found["resumed"] == found["whole"]
        assert len(found["whole"][1]) == EPOCHS
