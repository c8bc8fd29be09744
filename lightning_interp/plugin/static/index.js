// The tab of lightning_interp in TensorBoard. TensorBoard imports this module into an iframe and calls render().
import { element, fill } from "./dom.js";
import { emptyState } from "./empty.js";
import { discovered } from "./features.js";
import { Slot, loadPlotly, setTemplates, setTheme } from "./figures.js";
import { card } from "./overview.js";
import { Picker, key } from "./picker.js";
import { LATEST, ask } from "./server.js";
import { Slider } from "./slider.js";
import { Table } from "./table.js";
import { themePicker } from "./theme.js";

const EVERY = 3000; // milliseconds between looks for new events
const SETTLE = 60; // milliseconds the slider rests before the server is asked

class Page {
  constructor() {
    this.picker = new Picker(() => this.choose());
    this.slider = new Slider(() => this.move());
    this.banner = element("p", { class: "banner", role: "alert", hidden: true });
    this.remarks = element("ul", { class: "remarks" });
    this.cards = element("div", { class: "cards" });
    this.caveat = element("p", { class: "caveat" });
    this.measure = element("select", { id: "measure", onchange: () => this.ask("event") });
    this.alarms = element("ul", { class: "alarms" });
    this.found = element("div");
    this.tableRun = element("select", { id: "table-run", onchange: () => this.ask("records") });
    this.table = new Table((offset) => this.records(offset));
    const overTime = { cursor: true, onstep: (step) => this.slider.goto(step) };
    this.slots = {
      equation: new Slot("Effects at the chosen step, with intervals"),
      contributions: new Slot("What the output is made of, over steps", overTime),
      effects: new Slot("Effects over steps", overTime),
      heatmap: new Slot("Layers by variables at the chosen step"),
      groups: new Slot("Accuracy by group, over steps", overTime),
      penalties: new Slot("Penalties and alarms, over steps", overTime),
      features: new Slot("Discovered features at the chosen step"),
    };
    this.pending = {};
    this.state = "";
    this.main = element("main", {}, this.sections());
    this.empty = emptyState();
    this.tools = element("div", { class: "tools" }, this.picker.node, this.slider.node, themePicker(setTheme));
    fill(document.body, this.tools, this.banner, this.main, this.empty);
    this.main.hidden = this.empty.hidden = true;
  }

  sections() {
    const { slots } = this;
    const section = (id, title, ...content) => element("section", { id, "aria-label": title }, element("h2", {}, title), ...content);
    const labelled = (label, control) => element("p", { class: "controls" }, element("label", { for: control.id }, label), control);
    return [
      section("now", "What the model uses", this.cards, this.caveat, this.remarks),
      section("history", "How that came about", slots.contributions.node),
      section("effects", "Effects", slots.equation.node, slots.effects.node),
      section("where", "Where in the network", labelled("Measure", this.measure), slots.heatmap.node),
      section("groups", "Groups", slots.groups.node),
      section("penalties", "Penalties and alarms", slots.penalties.node, this.alarms),
      section("features", "Features without a name", slots.features.node, this.found),
      section("records", "Records of the event", labelled("Run", this.tableRun), this.table.node),
    ];
  }

  // --- what is asked, and when -----------------------------------------------------------------------------------------

  async look() {
    try {
      const runs = await ask("runs");
      setTemplates(runs.templates);
      this.caveat.textContent = runs.caveat;
      const changed = this.picker.update(runs.series);
      const none = !runs.series.length;
      this.main.hidden = none;
      this.empty.hidden = !none;
      this.tools.classList.toggle("idle", none);
      const state = JSON.stringify(this.picker.selected());
      if (changed || state !== this.state) await this.load(state);
      else this.say("");
    } catch (problem) {
      this.say(problem.message);
    }
  }

  choose() {
    this.load(JSON.stringify(this.picker.selected()));
  }

  async load(state) {
    this.state = state;
    if (!this.picker.selected().length) {
      this.nothing();
      return;
    }
    if (this.slider.follow) await this.ask("event"); // the newest is read alone, long before the history
    await this.ask("history");
  }

  move() {
    this.cursor();
    clearTimeout(this.resting);
    this.main.setAttribute("aria-busy", "true");
    this.resting = setTimeout(() => ["event", "features", "records"].forEach((what) => this.ask(what)), SETTLE);
  }

  // Ask for what the route has to say now; a newer question makes an older one void.
  async ask(what) {
    this.pending[what]?.abort();
    const mine = (this.pending[what] = new AbortController());
    this.main.setAttribute("aria-busy", "true");
    try {
      await this[what](0, mine.signal);
      if (!mine.signal.aborted) this.say("");
    } catch (problem) {
      if (!mine.signal.aborted) {
        this.state = ""; // so that the next look asks again
        this.say(problem.message);
      }
    } finally {
      if (this.pending[what] === mine) delete this.pending[what];
      this.main.setAttribute("aria-busy", String(Object.keys(this.pending).length > 0));
    }
  }

  get chosen() {
    return this.picker.selected().map(key);
  }

  get step() {
    return this.slider.follow || this.slider.step === null ? LATEST : this.slider.step;
  }

  async history(_, signal) {
    const answer = await ask("history", { series: this.chosen }, signal);
    if (signal.aborted) return;
    this.slider.update(answer.series);
    this.remark(answer.series);
    this.measures(answer.measures);
    this.tabled(answer.series);
    for (const name of ["contributions", "effects", "groups", "penalties"]) this.slots[name].show(answer.figures[name]);
    this.cursor();
    const alarms = answer.series.flatMap((one) => one.alarms.map(([step, text]) => element("li", {}, `${one.label}, event at step ${step}: ${text.replace(/^step \d+: /, "")}`)));
    fill(this.alarms, alarms);
    ["event", "features", "records"].forEach((what) => this.ask(what));
  }

  async event(_, signal) {
    const measure = this.measure.value || "decodability";
    const answer = await ask("event", { series: this.chosen, step: this.step, measure }, signal);
    if (signal.aborted) return;
    fill(this.cards, answer.series.map(card));
    setTimeout(loadPlotly, 50); // when the cards are seen: it takes a second to start, in which nothing else can be shown
    this.slots.equation.show(answer.figures.equation);
    this.slots.heatmap.show(answer.figures.heatmap);
  }

  async features(_, signal) {
    const any = this.picker.selected().some((one) => one.layers.length);
    document.getElementById("features").hidden = !any;
    if (!any) return;
    const answer = await ask("features", { series: this.chosen, step: this.step }, signal);
    if (signal.aborted) return;
    this.slots.features.show(answer.figures.features ?? { reason: "No features by this step." });
    fill(this.found, answer.problems.map((text) => element("p", { class: "alarm" }, text)), answer.series.map(discovered));
  }

  async records(offset, signal = undefined) {
    const answer = await ask("records", { series: this.tableRun.value, step: this.step, offset }, signal);
    if (signal?.aborted) return;
    this.table.show(offset ? [...this.table.records, ...answer.records] : answer.records, answer.total);
  }

  // --- what is shown ---------------------------------------------------------------------------------------------------

  cursor() {
    Object.values(this.slots).forEach((slot) => slot.at(this.slider.step));
  }

  nothing() {
    Object.values(this.pending).forEach((one) => one.abort());
    this.slider.update([]);
    fill(this.cards, element("p", {}, "Choose a run above."));
    [this.remarks, this.alarms, this.found].forEach((node) => fill(node));
    Object.values(this.slots).forEach((slot) => slot.show({ reason: "No run is chosen." }));
    this.table.show([], 0);
  }

  remark(series) {
    const said = new Map(); // what is said of several runs is said once
    const say = (one, text) => said.set(text, [...(said.get(text) ?? []), one.label]);
    for (const one of series) {
      one.problems.forEach((text) => say(one, `an event could not be read: ${text}`));
      const { held, written, drawn, steps } = one;
      if (held < written) say(one, `TensorBoard holds a sample of ${held} of ${written} events. For all, start it with --samples_per_plugin lightning_interp=${written}`);
      if (drawn < steps.length) say(one, `the figures over steps draw ${drawn} of ${steps.length} events; the slider has all ${steps.length}`);
    }
    fill(this.remarks, [...said].map(([text, labels]) => element("li", {}, `${labels.join(", ")}: ${text}.`)));
  }

  measures(found) {
    if (JSON.stringify(found) === this.measured) return;
    this.measured = JSON.stringify(found);
    const before = this.measure.value;
    fill(this.measure, found.map(([name, title]) => element("option", { value: name }, `${name} (${title})`)));
    const known = found.map(([name]) => name);
    if (known.includes(before)) this.measure.value = before;
    if (known.length && this.measure.value !== (before || "decodability")) this.ask("event");
    document.getElementById("where").hidden = !known.length;
  }

  tabled(series) {
    const before = this.tableRun.value;
    fill(this.tableRun, series.map((one) => element("option", { value: key(one) }, one.label)));
    if (series.some((one) => key(one) === before)) this.tableRun.value = before;
  }

  say(text) {
    this.banner.textContent = text;
    this.banner.hidden = !text;
  }
}

export async function render() {
  document.documentElement.lang = "en";
  document.head.append(element("meta", { charset: "utf-8" }), element("link", { rel: "stylesheet", href: "./style.css" }));
  document.head.append(element("link", { rel: "preload", href: "./plotly.min.js", as: "script" }));
  const page = new Page();
  for (;;) {
    if (!document.hidden) await page.look();
    loadPlotly();
    await new Promise((done) => setTimeout(done, EVERY));
  }
}
