"""`torchrun by_torchrun.py folder`: runs of Hugging Face's Trainer on as many processes as it is started with."""

import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the host's own
    import torch
    import transformers
    from callbacks import boring
    from callbacks.boring import bits

    from loops.test_huggingface import NETS, TEXT, Bag, Pictures, Sentences, made, suppression, trainer, vit, watch

    folder = Path(sys.argv[1])
    monitor, penalty = watch(NETS["vit"][2], NETS["vit"][3]), suppression()
    run = trainer(folder, made(vit), Pictures, monitor, [penalty], rows=(32, 75), num_train_epochs=1)
    run.evaluate()
    event = boring.plain(monitor.latest)
    scales = []
    find = run._scale
    run._scale = lambda *given: scales.append(find(*given)) or scales[-1]
    run.train()
    found = {"event": event, "scale": scales[0]}

    class Stop(transformers.TrainerCallback):
        """After the first epoch."""

        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    def fit(place: str, watched: bool = True, stop: bool = False, resume: bool | None = None):
        monitor = watch(TEXT, ["embed"]) if watched else None
        penalties = [suppression()] if place != "bare" else []
        where = folder / f"{place} {run.accelerator.num_processes}"
        it = trainer(where, made(Bag, dropout=0.2), Sentences, monitor, penalties, save_strategy="epoch")
        if stop:
            it.add_callback(Stop)
        it.train(resume_from_checkpoint=resume)
        events = [] if monitor is None else [boring.plain(e) for e in monitor.history]
        return bits(it.model.state_dict()), events, [s.acted for s in penalties]

    found["watched"], found["unwatched"] = (fit("bare", watched)[0] for watched in (True, False))
    found["whole"] = fit("whole")
    fit("half", stop=True)
    found["resumed"] = fit("half", resume=True)
    if run.is_world_process_zero():
        torch.save(found, folder / f"{run.accelerator.num_processes}.pt")
