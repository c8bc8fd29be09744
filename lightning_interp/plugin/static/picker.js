// Which runs are looked at.
import { element, fill } from "./dom.js";

const AT_FIRST = 4; // runs, those written last; what is chosen stays
const MANY = 8; // runs, from which on they can be filtered by name

export const key = (series) => JSON.stringify(series.id);

export class Picker {
  constructor(onchange) {
    this.onchange = onchange;
    this.chosen = new Set();
    this.touched = false;
    this.series = [];
    this.filter = element("input", { type: "search", placeholder: "filter runs", "aria-label": "Filter runs by name", hidden: true, oninput: () => this.draw() });
    this.list = element("div", { class: "runs" });
    this.count = element("span", { class: "when" });
    this.node = element("fieldset", {}, element("legend", {}, "Runs"), this.filter, this.list, this.count);
  }

  // Whether the choice changed.
  update(series) {
    const before = [...this.chosen].join();
    const known = new Set(series.map(key));
    this.chosen = new Set([...this.chosen].filter((one) => known.has(one)));
    if (!this.touched) {
      const others = series.filter((one) => !this.chosen.has(key(one))).sort((a, b) => (b.time ?? 0) - (a.time ?? 0));
      others.slice(0, Math.max(0, AT_FIRST - this.chosen.size)).forEach((one) => this.chosen.add(key(one)));
    }
    const listed = this.series.map(key).join();
    this.series = series;
    if (listed !== series.map(key).join() || before !== [...this.chosen].join()) this.draw();
    return before !== [...this.chosen].join();
  }

  // In the order of the list, so that a run's panel stays where it is.
  selected() {
    return this.series.filter((one) => this.chosen.has(key(one)));
  }

  toggle(one, on) {
    this.touched = true;
    if (on) this.chosen.add(one);
    else this.chosen.delete(one);
    this.counted();
    this.onchange();
  }

  draw() {
    this.filter.hidden = this.series.length < MANY;
    const wanted = this.filter.value.toLowerCase();
    const shown = this.series.filter((one) => one.label.toLowerCase().includes(wanted));
    fill(this.list, shown.map((one) => this.choice(one)));
    this.counted();
  }

  choice(one) {
    const box = element("input", { type: "checkbox", onchange: () => this.toggle(key(one), box.checked) });
    box.checked = this.chosen.has(key(one));
    return element("label", { title: one.label }, box, " ", one.label);
  }

  counted() {
    this.count.textContent = this.series.length > AT_FIRST ? `${this.chosen.size} of ${this.series.length} chosen` : "";
  }
}
