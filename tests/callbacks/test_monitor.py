"""`ConceptMonitor` in a Trainer: it changes no bit of the run, and its numbers reach everyone who asks for them."""

import csv
import signal
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from callbacks import boring
from callbacks.boring import ALL, BATCH, TRAIN, VAL, Animals, Boring, BoringData, Call, Memory, fit, hooks, monitor, trainer
from lightning_interp import Concept, Confounder, explain
from lightning_interp.errors import InterpError, InterpWarning, LayerError

pytestmark = boring.HOST_WARNINGS

NAMES = ("moo", "grass")
FIXED = partial(
    Boring, dropout=0.0
)  # with `BoringData(shuffle=False)`: nothing is drawn, so that a resumed run can equal another
PROBE = Animals(VAL, 2)


def probe(kind):
    """What `data` is given, made anew for every run."""
    made = {
        "loader": lambda: boring.loader(PROBE),
        "loader, 2 workers": lambda: DataLoader(PROBE, BATCH, num_workers=2),
        "shuffled loader": lambda: boring.loader(PROBE, shuffle=True),
        "dataset": lambda: PROBE,
    }
    return made[kind]() if kind in made else kind


# --- watching changes nothing -----------------------------------------------------------------------------------------


def everything(watcher, workers=0, compiled=None, net=Boring, **options):
    """A run's every bit: weights, buffers, optimizer, metrics, flags, random streams, and what the user logged."""
    memory = Memory()
    data = BoringData(workers=workers)
    made = partial(net, compiled=compiled)
    run, model = fit(*([] if watcher is None else [watcher]), model=made, data=data, logger=memory, **options)
    lines = [(s, {k: v for k, v in line.items() if not k.startswith("watch/")}) for s, line in memory.lines]
    return {
        "weights": boring.bits(model.state_dict()),
        "optimizer": boring.bits([o.state_dict() for o in run.optimizers]),
        "metrics": boring.bits([m.metric_state for m in (model.accuracy, model.seen)]),
        "training": [m.training for m in model.modules()],
        "streams": boring.streams(),
        "logged": [line for line in lines if line[1]],
        "callback_metrics": boring.bits({k: v for k, v in run.callback_metrics.items() if not k.startswith("watch/")}),
    }


def differing(one, other):
    return [name for name in one if one[name] != other[name]]


@pytest.fixture(scope="module")
def unwatched():
    """`everything` of the run with no monitor, once per set of options."""
    known = {}

    def find(**options):
        key = repr(sorted(options.items()))
        if key not in known:
            known[key] = everything(None, **options)
        return known[key]

    return find


@pytest.mark.parametrize(
    ("data", "schedule", "options"),
    [
        ("val", {}, {}),
        ("train", {}, {}),
        ("loader", {}, {}),
        ("shuffled loader", {"every_n_train_steps": 5}, {}),
        ("dataset", {}, {}),
        ("val", {}, {"workers": 2}),
        ("loader, 2 workers", {}, {"workers": 2}),
        ("val", {}, {"accumulate_grad_batches": 2}),
        ("train", {"every_n_train_steps": 4}, {"accumulate_grad_batches": 2}),
        ("loader", {"every_n_train_steps": 4}, {"accumulate_grad_batches": 2}),
        ("val", {}, {"precision": "bf16-mixed"}),
        ("train", {}, {"precision": "bf16-mixed"}),
        ("val", {}, {"compiled": "eager"}),
        ("train", {"every_n_train_steps": 5}, {"compiled": "aot_eager"}),
    ],
    ids=str,
)
def test_a_watched_run_has_the_same_bits(unwatched, data, schedule, options):
    watcher = monitor(data=probe(data), measures=ALL, max_samples=48, prefix="watch", **schedule)
    watched = everything(watcher, **options)
    assert len(watcher.history) >= 2
    assert all(value.value is not None for value in watcher.latest.intervention.values())
    assert watcher.latest.sensitivity
    assert all(m.rank == 1 for found in watcher.latest.mediation.values() for m in found.values())  # each was erased
    assert all(e.cosine is not None for e in watcher.latest.entanglement.values())
    assert differing(watched, unwatched(**options)) == []


@pytest.mark.parametrize(
    ("data", "schedule", "options"),
    [
        ("val", {}, {}),
        ("val", {}, {"precision": "bf16-mixed"}),
        ("train", {"every_n_train_steps": 5}, {"compiled": "aot_eager"}),
    ],
    ids=str,
)
def test_a_run_watched_by_examples_has_the_same_bits(unwatched, data, schedule, options):
    shown = Confounder("stripes", examples=(boring.with_stripes, boring.without_stripes))
    watcher = monitor([Concept("moo"), shown], data=data, measures=ALL, prefix="watch", **schedule)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'stripes' has examples, no labels", InterpWarning)
        watched = everything(watcher, **options)
    assert len(watcher.history) >= 2
    for layer in boring.LAYERS:
        assert watcher.latest.decodability[layer]["stripes"].drift is not None
        assert watcher.latest.sensitivity[layer]["stripes"][""].value != 0
    assert differing(watched, unwatched(**options)) == []


@pytest.mark.parametrize("kind", ["forward", "eval and train", "random", "buffers", "metric", "log"])
def test_a_careless_watcher_is_noticed(unwatched, kind):
    x = PROBE.x[:BATCH]

    def look(run, model):
        if kind == "forward":
            model(x)
        elif kind == "eval and train":
            model.eval().train()
        elif kind == "random":
            torch.rand(1)
        elif kind == "buffers":
            model.ema.add_(1)
        elif kind == "metric":
            model.seen.update(torch.ones(1))
        else:
            model.log("forward_mean", 1.0)

    assert differing(everything(Call(on_train_epoch_end=look)), unwatched())


def test_a_frozen_batch_norm_stays_in_evaluation_mode():
    _, model = fit(monitor(data=boring.loader(PROBE), measures=ALL))
    assert not model.frozen.training
    assert model.encoder.training


# --- keys -------------------------------------------------------------------------------------------------------------


def keys(measures, first):
    """The logged keys for one confounder `grass` and one concept `moo`, both binary."""
    out = {f"contribution/{v}" for v in (*NAMES, "unexplained")} | {f"effect/{v}" for v in NAMES}
    at_layers = ["decodability", "selectivity", "decodability_accuracy", "decodability_auroc", *([] if first else ["drift"])]
    if "sensitivity" in measures:
        at_layers += ["sensitivity", "tcav"]
        out.add("intervention/grass")
        out |= {f"entanglement/{layer}" for layer in boring.LAYERS}
        out |= {f"mediation/{layer}/{a}/{b}" for layer in boring.LAYERS for a in NAMES for b in NAMES}
    out |= {f"{measure}/{layer}/{v}" for measure in at_layers for layer in boring.LAYERS for v in NAMES}
    cells = {f"group/accuracy/moo={a},grass={b}" for a in (0, 1) for b in (0, 1)}
    return out | cells | {"group/worst_accuracy", "group/gap"}


USERS = {"train_loss", "train_loss_step", "train_loss_epoch", "forward_mean", "val_loss", "accuracy", "seen"}


@pytest.mark.parametrize("measures", [("contribution", "decodability", "groups"), ALL], ids=len)
@pytest.mark.parametrize("data", ["val", "train", "loader"])
def test_logged_keys_are_those_of_the_design(data, measures):
    seen, memory = [], Memory()
    look = Call(on_train_epoch_end=lambda run, model: seen.append(set(run.callback_metrics) - USERS))
    watcher = monitor(data=probe(data), measures=measures)
    fit(watcher, look, logger=memory)
    assert seen == [keys(measures, first=True), keys(measures, first=False)]
    logged = [set(line) - USERS - {"epoch"} for _, line in memory.lines]
    assert [line for line in logged if line] == seen
    assert [e.mode for e in watcher.history] == [data if data in ("val", "train") else "probe"] * 2


def test_callback_metrics_hold_the_events_numbers():
    watcher = monitor(prefix="m")
    run, _ = fit(watcher)
    for key, value in watcher.latest.scalars().items():
        assert run.callback_metrics[f"m/{key}"].item() == pytest.approx(value, rel=1e-6)


# --- those who monitor a key ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "schedule", "options"),
    [
        ("val", {}, {}),
        ("val", {"every_n_epochs": 3}, {}),
        ("val", {"every_n_epochs": 3}, {"val_check_interval": 0.5}),
        ("val", {}, {"val_check_interval": 0.5}),
        ("loader", {"every_n_epochs": 3}, {"val_check_interval": 0.5}),
        ("loader", {"every_n_epochs": 3}, {"limit_val_batches": 0}),
        ("train", {"every_n_epochs": 3}, {"limit_val_batches": 0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True], ids=["monitor first", "monitor last"])
def test_early_stopping_and_checkpoints_can_monitor_a_key(tmp_path, data, schedule, options, last):
    on_train = options.get("limit_val_batches") == 0
    stop = EarlyStopping("contribution/grass", patience=100, check_on_train_epoch_end=on_train)
    best = ModelCheckpoint(tmp_path, monitor="contribution/grass", mode="min", save_on_train_epoch_end=on_train)
    watcher, seen = monitor(data=probe(data), **schedule), []
    look = Call(on_train_epoch_end=lambda run, model: seen.append(float(run.callback_metrics["contribution/grass"])))
    order = [stop, best, watcher] if last else [watcher, stop, best]
    fit(*order, look, max_epochs=4, enable_checkpointing=True, **options)
    shares = [e.contribution["grass"].value for e in watcher.history]
    per_epoch = 2 if "val_check_interval" in options else 1
    due = [0, 3] if schedule else [0, 1, 2, 3]
    assert [e.epoch for e in watcher.history] == [e for e in due for _ in range(per_epoch)]
    assert float(stop.best_score) == pytest.approx(min(shares))
    assert float(best.best_model_score) == pytest.approx(min(shares))
    latest = [[s for s, e in zip(shares, watcher.history) if e.epoch <= epoch][-1] for epoch in range(4)]
    assert seen == pytest.approx(latest)


# --- loggers ----------------------------------------------------------------------------------------------------------


def read(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    found.Reload()
    return found


@pytest.mark.parametrize(
    ("data", "options", "beside"),
    [
        ("val", {}, "val_loss"),
        ("val", {"val_check_interval": 0.5}, "val_loss"),
        ("val", {"accumulate_grad_batches": 2}, "val_loss"),
        ("loader", {"val_check_interval": 0.5}, "val_loss"),
        ("train", {}, "train_loss_epoch"),
        ("train", {"accumulate_grad_batches": 2}, "train_loss_epoch"),
        ("loader", {"limit_val_batches": 0}, "train_loss_epoch"),
    ],
    ids=str,
)
def test_points_stand_at_the_x_of_the_loss(tmp_path, data, options, beside):
    fit(monitor(data=probe(data)), logger=TensorBoardLogger(tmp_path, name="", version=""), log_every_n_steps=5, **options)
    found = read(tmp_path)
    losses = [point.step for point in found.Scalars(beside)]
    assert len(losses) >= 2
    for key in ("contribution/grass", "contribution/unexplained", "effect/moo", "group/gap", "decodability/encoder.0/moo"):
        assert [point.step for point in found.Scalars(key)] == losses


@pytest.mark.parametrize("data", ["train", "loader"])
def test_points_by_steps_stand_at_the_x_of_the_steps_loss(tmp_path, data):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(monitor(data=probe(data), every_n_train_steps=4), logger=logger, log_every_n_steps=1, limit_val_batches=0)
    found = read(tmp_path)
    losses = [point.step for point in found.Scalars("train_loss_step")]
    assert losses == list(range(24))
    assert [point.step for point in found.Scalars("contribution/grass")] == losses[3::4]


def test_tensorboard_gets_text_heat_map_and_layout(tmp_path):
    fit(monitor(prefix="run"), logger=TensorBoardLogger(tmp_path, name="", version=""), max_epochs=3)
    found = read(tmp_path)
    steps = [point.step for point in found.Scalars("val_loss")]
    assert len(steps) == 3
    texts = found.Tensors("run/equation/text_summary")
    assert [text.step for text in texts] == steps
    for text in texts:
        assert "·grass" in text.tensor_proto.string_val[0].decode()
    assert found.Tags()["images"] == ["run/decodability"]
    images = found.Images("run/decodability")
    assert [image.step for image in images] == steps
    assert images[0].encoded_image_string != images[2].encoded_image_string
    (layout,) = found.Tensors("custom_scalars__config__")
    assert b"run/contribution/(moo|grass|interactions|unexplained)" in layout.tensor_proto.string_val[0]


def test_what_erasing_does_is_a_line_of_the_text(tmp_path):
    watcher = monitor(measures=ALL)
    fit(watcher, logger=TensorBoardLogger(tmp_path, name="", version=""), max_epochs=1)
    (text,) = read(tmp_path).Tensors("equation/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert "erase grass at encoder.0: grass −" in shown
    assert "most entangled: moo and grass at encoder." in shown


def test_the_warning_is_also_a_tensorboard_text(tmp_path):
    with pytest.warns(InterpWarning, match="confounder 'grass' makes"):
        fit(monitor(warn_above=0.0), logger=TensorBoardLogger(tmp_path, name="", version=""), max_epochs=3)
    (text,) = read(tmp_path).Tensors("warning/text_summary")
    assert b"confounder 'grass' makes" in text.tensor_proto.string_val[0]


def test_warn_above_warns_once_in_a_run():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watcher = monitor(warn_above=0.0)
        fit(watcher, max_epochs=3)
    assert all(e.contribution["grass"].debiased > 0 for e in watcher.history)
    assert sum("leans on it" in str(w.message) for w in caught if w.category is InterpWarning) == 1


@pytest.mark.parametrize("data", ["val", "train", "loader"])
def test_without_a_logger_there_are_events_all_the_same(data):
    watcher = monitor(data=probe(data))
    run, _ = fit(watcher, logger=False)
    assert run.loggers == []
    assert len(watcher.history) == 2


def test_csv_logger_alone_gets_the_numbers(tmp_path):
    watcher = monitor()
    run, _ = fit(watcher, logger=CSVLogger(tmp_path, name="", version=""))
    run.logger.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [row["contribution/grass"] for row in csv.DictReader(lines)]
    wanted = [e.contribution["grass"].value for e in watcher.history]
    assert [float(v) for v in rows if v] == pytest.approx(wanted)


def test_two_loggers_both_get_the_numbers(tmp_path):
    memory = Memory()
    fit(monitor(), logger=[memory, TensorBoardLogger(tmp_path, name="", version="")])
    points = read(tmp_path).Scalars("contribution/grass")
    kept = [(step, line["contribution/grass"]) for step, line in memory.lines if "contribution/grass" in line]
    assert len(kept) == 2
    assert [(p.step, p.value) for p in points] == [(step, pytest.approx(value)) for step, value in kept]


@pytest.mark.parametrize("data", ["val", "train", "loader"])
def test_fast_dev_run_measures_and_logs_nothing(data):
    big = {"train": boring.loader(Animals(TRAIN, 1), batch=64), "val": boring.loader(PROBE, batch=64)}
    watcher = monitor(data=probe(data))
    boring.seed_everything(0, verbose=False)
    run = trainer(watcher, fast_dev_run=True, logger=True)
    run.fit(Boring(), big["train"], big["val"])
    assert watcher.latest.n == (VAL if data == "loader" else 64)
    assert "contribution/grass" in run.callback_metrics


# --- which batches are read -------------------------------------------------------------------------------------------


def test_limit_val_batches_limits_the_samples():
    watcher = monitor()
    fit(watcher, limit_val_batches=5)
    assert [e.n for e in watcher.history] == [5 * BATCH] * 2


@pytest.mark.parametrize(("which", "n"), [(0, VAL), (1, 96)])
def test_dataloader_idx_picks_one_of_several_validation_loaders(which, n):
    class Two(BoringData):
        def val_dataloader(self):
            return [super().val_dataloader(), boring.loader(Animals(96, 5))]

    watcher = monitor(dataloader_idx=which)
    _, model = fit(watcher, data=Two(), model=FIXED)
    assert [e.n for e in watcher.history] == [n] * 2
    alone = explain(
        model, Two().val_dataloader()[which], watcher.monitor.variables, inputs="x", output="head", step=24, epoch=1
    )
    assert alone.effect == watcher.latest.effect


@pytest.mark.parametrize("data", ["val", "loader"])
def test_the_sanity_check_makes_no_event(data):
    seen = []
    watcher = monitor(data=probe(data))
    look = Call(on_train_start=lambda run, model: seen.append((len(watcher.history), set(run.callback_metrics))))
    fit(watcher, look, num_sanity_val_steps=-1, max_epochs=1)
    ((before, metrics),) = seen
    assert before == 0
    assert not any(key.startswith("contribution") for key in metrics)
    assert len(watcher.history) == 1


@pytest.mark.parametrize("data", ["val", "loader"])
def test_validate_makes_one_event(data):
    watcher = monitor(data=probe(data), measures=ALL)
    boring.seed_everything(0, verbose=False)
    run, model = trainer(watcher), Boring()
    run.validate(model, BoringData().val_dataloader(), verbose=False)
    assert [e.n for e in watcher.history] == [VAL]
    assert "contribution/grass" in run.callback_metrics
    assert watcher.latest.sensitivity
    assert hooks(model) == 0


def test_validate_after_fit_measures_the_model_of_then():
    watcher = monitor(data="val")
    run, model = fit(watcher)
    run.validate(model, BoringData().val_dataloader(), verbose=False)
    assert len(watcher.history) == 3
    assert watcher.latest.effect == watcher.history[1].effect


# --- the training loop ------------------------------------------------------------------------------------------------


def test_hooks_are_on_only_in_the_window_before_an_event():
    between = []
    watcher = monitor(data="train", max_samples=40, weights="natural")  # 3 batches of 16
    look = Call(on_train_batch_end=lambda run, model: between.append(hooks(model)))
    _, model = fit(watcher, look)
    assert [e.n for e in watcher.history] == [48, 48]
    assert [found > 0 for found in model.hooks_in_step] == ([False] * 9 + [True] * 3) * 2
    assert between == [0] * 24


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_an_event_comes_at_every_due_step_with_its_window(accumulate):
    watcher = monitor(data="train", max_samples=40, every_n_train_steps=2, weights="natural")
    _, model = fit(watcher, accumulate_grad_batches=accumulate, max_epochs=1)
    steps = TRAIN // BATCH // accumulate
    assert [e.step for e in watcher.history] == list(range(2, steps + 1, 2))
    due = {2 * accumulate * i for i in range(1, steps // 2 + 1)}
    window = {b for d in due for b in range(max(1, d - 2), d + 1)}
    assert [e.n for e in watcher.history] == [BATCH * min(3, 2 * accumulate)] * len(due)
    assert [i for i, found in enumerate(model.hooks_in_step, 1) if found] == sorted(window)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_probe_loader_is_run_at_every_due_step(accumulate):
    watcher = monitor(data=boring.loader(PROBE), every_n_train_steps=5)
    fit(watcher, accumulate_grad_batches=accumulate)
    assert [e.step for e in watcher.history] == list(range(5, 24 // accumulate + 1, 5))
    assert {e.n for e in watcher.history} == {VAL}


def test_a_training_stream_of_unknown_length_keeps_its_last_batches():
    class Endless(BoringData):
        def train_dataloader(self):
            return DataLoader(boring.Stream(Animals(TRAIN, 1)), BATCH)

    ends, frozen = [], partial(FIXED, lr=0.0)
    for data in (Endless(), BoringData(shuffle=False)):
        watcher = monitor(data="train", max_samples=40, measures=ALL)
        fit(watcher, data=data, model=frozen)
        ends.append([boring.plain(e) for e in watcher.history])
    assert [e["n"] for e in ends[0]] == [48, 48]
    assert ends[0] == ends[1]


def test_no_hook_stays_when_the_user_ends_the_epoch_early():
    class Early(Boring):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 10 else None

    found = []
    count = lambda run, model: found.append(hooks(model))  # noqa: E731
    look = Call(on_train_epoch_start=count, on_train_epoch_end=count)
    watcher = monitor(data="train", max_samples=64, weights="natural")  # batches 8 to 11
    _, model = fit(watcher, look, model=Early)
    assert len(model.hooks_in_step) == 20
    assert model.hooks_in_step[9] > 0
    assert found == [0] * 4
    assert [e.n for e in watcher.history] == [32, 32]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_train_steps": 5}, r"`every_n_train_steps=5` does not go with `data='val'`.*`val_check_interval`"),
        ({"data": "vall"}, r"`data='vall'` is none of 'val', 'train', a DataLoader or a Dataset. Did you mean 'val'\?"),
        ({"measures": ["contributions"]}, r"`measures`: 'contributions' is none of .* Did you mean 'contribution'\?"),
        ({"weights": "balance"}, r"`weights`: 'balance' is none of balanced, natural. Did you mean 'balanced'\?"),
        ({"max_samples": 1}, r"`max_samples` expects a whole number of 2 or more, got 1"),
        ({"variables": []}, r"`variables` expects at least one Concept or Confounder, got none"),
    ],
)
def test_bad_arguments_are_errors_when_the_monitor_is_made(options, message):
    with pytest.raises(InterpError, match=message):
        monitor(**options)


def test_two_schedules_are_an_error():
    with pytest.raises(ValueError, match="`every_n_epochs` and `every_n_train_steps` were both given; give one"):
        monitor(data="train", every_n_epochs=1, every_n_train_steps=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["encodr.0"]}, r"`layers`: 'encodr.0' matches no submodule of Boring. Did you mean 'encoder.0'"),
        ({"output": "haed"}, r"`output='haed'` is no submodule of Boring. Did you mean 'head'\?"),
    ],
)
def test_an_unknown_layer_is_an_error_before_the_first_step(options, message):
    model = Boring()
    with pytest.raises(LayerError, match=message):
        fit(monitor(**options), model=model, num_sanity_val_steps=2)
    assert model.hooks_in_step == []
    assert model.calls == 0


def test_without_a_validation_loop_data_val_warns():
    watcher = monitor()
    with pytest.warns(InterpWarning, match=r"`data='val'`: this Trainer runs no validation loop, so there will be no event"):
        fit(watcher, limit_val_batches=0)
    assert watcher.history == ()


def test_a_label_that_is_not_in_the_batch_is_an_error_that_names_the_nearest():
    with pytest.raises(InterpError, match=r"label of 'gras'.*no 'gras'. Did you mean 'grass'\?"):
        fit(monitor([Concept("moo"), Confounder("gras")]))


def test_output_none_explains_what_forward_returns():
    ends = []
    for output in (None, "head"):
        watcher = monitor(output=output, measures=ALL)
        fit(watcher)
        ends.append([boring.plain(e) for e in watcher.history])
    assert ends[0] == ends[1]


def test_output_none_names_likely_modules_where_forward_never_runs():
    model = Boring(direct=False)
    text = (
        r"`output=None` explains the result of the model's own forward, which did not run in the step. Likely modules: .*'head'"
    )
    with pytest.raises(LayerError, match=text):
        fit(monitor(output=None), model=model)
    assert hooks(model) == 0


@pytest.mark.parametrize("data", ["val", "train"])
@pytest.mark.parametrize("where", ["training_step", "validation_step"])
@pytest.mark.parametrize("problem", [RuntimeError("the user's own"), KeyboardInterrupt()], ids=lambda p: type(p).__name__)
def test_no_hook_outlives_an_exception(data, where, problem):
    inside = []

    class Failing(Boring):
        def training_step(self, batch, batch_idx):
            return self.stop("training_step", super().training_step(batch, batch_idx))

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return self.stop("validation_step", super().validation_step(batch, batch_idx))

        def stop(self, name, result):
            inside.append(hooks(self))
            if name == where and self.current_epoch == 1:
                raise problem
            return result

    model, handler = Failing(), signal.getsignal(signal.SIGINT)
    expected = SystemExit if isinstance(problem, KeyboardInterrupt) else RuntimeError
    watcher = monitor(data=data, measures=ALL)
    try:
        with pytest.raises(expected):
            fit(watcher, model=model)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C switched off
    expects_hooks = (data == "val") == (where == "validation_step")
    assert (inside[-1] > 0) == expects_hooks
    assert hooks(model) == 0
    assert len(watcher.history) >= 1


def test_no_hook_and_no_row_outlives_a_fit():
    for data in ("val", "train", "loader"):
        watcher = monitor(data=probe(data), measures=ALL)
        _, model = fit(watcher)
        assert hooks(model) == 0
        assert watcher.monitor._collection.table() is None


# --- bad batches ------------------------------------------------------------------------------------------------------


class OneBad(BoringData):
    """One NaN in the third validation batch."""

    def val_dataloader(self):
        items = Animals(VAL, 2)
        items.x[2 * BATCH + 3, 2] = torch.nan
        return boring.loader(items)


def test_a_batch_of_nan_is_left_out_of_every_measure_and_said_once():
    watcher = monitor(measures=ALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, model = fit(watcher, data=OneBad(), model=FIXED)
    assert [(e.n, e.skipped) for e in watcher.history] == [(VAL - BATCH, 1)] * 2
    assert sum("NaN or infinite" in str(w.message) for w in caught if w.category is InterpWarning) == 1
    assert all(torch.isfinite(v) for k, v in run.callback_metrics.items() if "/" in k)
    clean = Animals(VAL, 2)
    rest = [i for i in range(VAL) if not 2 * BATCH <= i < 3 * BATCH]
    again = explain(
        model,
        boring.loader(torch.utils.data.Subset(clean, rest)),
        watcher.monitor.variables,
        boring.LAYERS,
        "head",
        "x",
        "moo",
        ALL,
        step=24,
        epoch=1,
    )
    left_out = ("mode", "skipped", "notes")
    wanted = boring.without_drift(boring.plain(again, *left_out))
    assert boring.without_drift(boring.plain(watcher.latest, *left_out)) == wanted


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "schedule", "options"),
    [
        ("val", {}, {}),
        ("val", {"every_n_epochs": 3}, {"val_check_interval": 0.5}),
        ("train", {}, {}),
        ("train", {"every_n_train_steps": 6}, {}),
        ("train", {"every_n_train_steps": 3}, {"accumulate_grad_batches": 2}),
        ("loader", {"every_n_train_steps": 5}, {}),
    ],
    ids=str,
)
def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path, data, schedule, options):
    def go(epochs, **more):
        watcher = monitor(data=probe(data), measures=ALL, max_samples=48, **schedule)
        still = BoringData(shuffle=False)
        callbacks = [watcher, ModelCheckpoint(tmp_path / str(len(more)), save_last=True)] if epochs == 2 else [watcher]
        _, model = fit(
            *callbacks, model=FIXED, data=still, max_epochs=epochs, enable_checkpointing=epochs == 2, **options, **more
        )
        return watcher, model

    whole, model = go(4)
    half, _ = go(2)
    path = tmp_path / "0" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    resumed, again = go(4, ckpt_path=str(path))
    assert 1 <= len(half.history) < len(whole.history)
    assert [boring.plain(e) for e in resumed.history] == [boring.plain(e) for e in whole.history]
    assert boring.bits(again.state_dict()) == boring.bits(model.state_dict())
    assert len(saved["callbacks"][half.state_key]["monitor"]["events"]) == len(half.history)


def test_a_monitor_of_another_run_says_so_and_keeps_its_events():
    watcher = monitor()
    fit(watcher, max_epochs=2)
    old = watcher.history
    with pytest.warns(InterpWarning, match=f"events of another run, up to step {old[-1].step}: they stay"):
        fit(watcher, max_epochs=1)
    assert watcher.history[: len(old)] == old
    assert len(watcher.history) == len(old) + 1


def test_a_warning_given_before_a_resume_is_not_given_again(tmp_path):
    def go(**more):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(monitor(warn_above=0.0), ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True, **more)
        return sum("leans on it" in str(w.message) for w in caught)

    assert go(max_epochs=1) == 1
    assert go(max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt")) == 0


def test_two_monitors_with_different_prefixes_stand_side_by_side(tmp_path):
    def go(**more):
        pair = (monitor(prefix="a"), monitor(prefix="b", data="train", layers=["encoder.2"]))
        run, _ = fit(*pair, ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True, **more)
        return pair, run

    (a, b), run = go(max_epochs=1)
    assert {"a/contribution/grass", "b/contribution/grass", "a/decodability/encoder.0/moo"} <= set(run.callback_metrics)
    assert "b/decodability/encoder.0/moo" not in run.callback_metrics
    (c, d), _ = go(max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [e.mode for e in c.history] == ["val", "val"]
    assert [e.mode for e in d.history] == ["train", "train"]
    assert (c.history[0], d.history[0]) == (a.history[0], b.history[0])


def test_the_same_prefix_twice_is_the_trainers_error():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ConceptMonitor`"):
        trainer(monitor(), monitor())


# --- the same numbers elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["val", "loader"])
def test_explain_gives_the_callbacks_last_event(data):
    watcher = monitor(data=probe(data), measures=ALL, interactions=True)
    _, model = fit(watcher)
    event = explain(
        model,
        boring.loader(PROBE),
        watcher.monitor.variables,
        boring.LAYERS,
        "head",
        "x",
        "moo",
        ALL,
        interactions=True,
        step=watcher.latest.step,
        epoch=watcher.latest.epoch,
    )
    assert any(s.drift is not None for scores in watcher.latest.decodability.values() for s in scores.values())
    wanted = boring.without_drift(boring.plain(watcher.latest, "mode"))
    assert boring.without_drift(boring.plain(event, "mode")) == wanted
    assert hooks(model) == 0


@pytest.mark.parametrize("data", ["val", "train", "loader"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_layers_of_a_compiled_submodule_are_seen(data, backend):
    ends = []
    for compiled in (None, backend):
        torch.compiler.reset()
        watcher = monitor(data=probe(data), measures=ALL)
        fit(watcher, model=partial(Boring, compiled=compiled, lr=0.0, dropout=0.0), data=BoringData(shuffle=False))
        ends.append(watcher.history)
    for plain, compiled in zip(*ends):
        assert compiled.n == plain.n
        assert list(compiled.decodability) == boring.LAYERS
        assert compiled.scalars() == pytest.approx(plain.scalars(), rel=1e-4, abs=1e-5)


def test_the_layers_of_a_compiled_submodule_are_never_stale():
    watcher = monitor(layers=["encoder.0"])
    fit(watcher, model=partial(Boring, compiled="eager"), max_epochs=3)
    drifts = [e.decodability["encoder.0"]["moo"].drift for e in watcher.history]
    assert drifts[0] is None
    assert all(d > 1e-6 for d in drifts[1:])
    assert [e.n for e in watcher.history] == [VAL] * 3
