// Which step is looked at: the last one, until the reader moves.
import { element, when } from "./dom.js";

export class Slider {
  constructor(onmove) {
    this.onmove = onmove;
    this.steps = [];
    this.epochs = new Map();
    this.follow = true;
    this.range = element("input", { type: "range", min: "0", max: "0", step: "1", value: "0", id: "step", oninput: () => this.moved() });
    this.text = element("output", { for: "step" }, "reading …");
    this.latest = element("button", { type: "button", onclick: () => this.toLatest() }, "Latest");
    this.node = element("div", { class: "stepper" }, element("label", { for: "step" }, "Step"), this.range, this.text, this.latest);
  }

  get step() {
    return this.steps.length ? this.steps[Number(this.range.value)] : null;
  }

  // Steps of all chosen runs together. The reader's own step stays, or the last before it.
  update(series) {
    const before = this.step;
    this.epochs = new Map(series.flatMap((one) => one.steps.map((step, i) => [step, one.epochs[i]])));
    this.steps = [...this.epochs.keys()].sort((a, b) => a - b);
    const last = Math.max(0, this.steps.length - 1);
    this.range.max = String(last);
    const stays = this.steps.findLastIndex((step) => step <= before);
    this.range.value = String(this.follow || before === null ? last : Math.max(0, stays));
    this.said();
  }

  goto(step) {
    const nearest = this.steps.reduce((best, one, i) => (Math.abs(one - step) < Math.abs(this.steps[best] - step) ? i : best), 0);
    this.range.value = String(nearest);
    this.moved();
  }

  toLatest() {
    this.range.value = this.range.max;
    this.moved();
  }

  moved() {
    this.follow = this.range.value === this.range.max;
    this.said();
    this.onmove();
  }

  said() {
    const text = this.step === null ? "no event yet" : when(this.step, this.epochs.get(this.step));
    this.text.textContent = text;
    this.range.setAttribute("aria-valuetext", text);
    this.range.disabled = this.steps.length < 2;
    this.latest.setAttribute("aria-pressed", String(this.follow));
    this.latest.title = this.follow ? "Following the newest event" : "Go to the newest event and follow it";
  }
}
