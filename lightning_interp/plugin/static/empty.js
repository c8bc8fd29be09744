// What to do where there is nothing to show.
import { element } from "./dom.js";

const SCRIPT = `import lightning as L
import lightning_interp as interp
from lightning.pytorch.loggers import TensorBoardLogger

monitor = interp.ConceptMonitor(
    variables=[interp.Concept("digit", label="digit"), interp.Confounder("grass", label="grass")],
    layers=["encoder.*"],  # names or globs of submodules; leave it out to explain only the output
    target="label",  # where the task's own label is in a batch
)
trainer = L.Trainer(callbacks=[monitor], logger=TensorBoardLogger("runs"))
trainer.fit(model, datamodule=data)`;

export function emptyState() {
  return element(
    "section", { class: "empty" },
    element("h2", {}, "No run here has events of lightning_interp yet"),
    element("p", {}, "Add a ConceptMonitor to the Trainer's callbacks, with a TensorBoardLogger that writes below this TensorBoard's --logdir:"),
    element("pre", {}, SCRIPT),
    element("p", {}, "The first event comes at the end of the first validation run. This page looks for it every few seconds. ",
      "Something to look at at once: ", element("code", {}, "python examples/grassy_digits.py --log-dir runs"), "."),
  );
}
