"""`torchrun by_torchrun.py folder`: an evaluation of Hugging Face's Trainer on as many processes as it is started with."""

import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the host's own
    import torch
    from callbacks import boring

    from loops.test_huggingface import NETS, Pictures, made, suppression, trainer, vit, watch

    folder = Path(sys.argv[1])
    monitor, penalty = watch(NETS["vit"][2], NETS["vit"][3]), suppression()
    run = trainer(folder, made(vit), Pictures, monitor, [penalty], rows=(32, 75), num_train_epochs=1)
    run.evaluate()
    event = boring.plain(monitor.latest)
    scales = []
    find = run._scale
    run._scale = lambda *given: scales.append(find(*given)) or scales[-1]
    run.train()
    if run.is_world_process_zero():
        torch.save({"event": event, "scale": scales[0]}, folder / f"{run.accelerator.num_processes}.pt")
