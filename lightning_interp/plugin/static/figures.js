// Draws the figures that `lightning_interp/report` makes. Plotly comes from this machine; without it the page says so.
import { element, fill } from "./dom.js";

let plotly = null;
let missing = "";
let templates = {};
let theme = "light";
const slots = new Set();

const watcher = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.target.holder.see(entry.isIntersecting)),
  { rootMargin: "200px" },
);

let asked = false;

export function loadPlotly() {
  if (asked) return;
  asked = true;
  const script = element("script", { src: "./plotly.min.js" });
  script.onload = () => {
    plotly = window.Plotly;
    slots.forEach((slot) => slot.draw());
  };
  script.onerror = () => {
    missing = 'The figures need plotly: pip install "lightning-interp[report]" where TensorBoard runs, then start it again.';
    slots.forEach((slot) => slot.draw());
  };
  document.head.append(script);
}

export function setTemplates(found) {
  templates = found;
}

export function setTheme(name) {
  theme = name;
  slots.forEach((slot) => slot.changed());
}

// A place for one figure. It is drawn when it comes into view, and then kept up to date.
export class Slot {
  constructor(label, { cursor = false, onstep = null } = {}) {
    this.node = element("div", { class: "figure", role: "group", "aria-label": label });
    this.node.holder = this;
    this.chart = null;
    this.visible = false;
    this.stale = false;
    this.figure = null;
    this.cursor = cursor;
    this.step = null;
    this.onstep = onstep;
    slots.add(this);
    watcher.observe(this.node);
  }

  show(figure) {
    this.figure = figure;
    this.changed();
  }

  at(step) {
    if (!this.cursor || step === this.step) return;
    this.step = step;
    if (this.chart && this.visible && !this.stale) plotly.relayout(this.chart, { shapes: this.shapes() });
    else this.due(true);
  }

  see(visible) {
    this.visible = visible;
    this.draw();
  }

  changed() {
    this.due(true);
    this.draw();
  }

  due(stale) {
    this.stale = stale;
    this.node.setAttribute("aria-busy", String(stale));
  }

  draw() {
    if (!this.figure || !this.stale || !this.visible) return;
    const reason = this.figure.reason ?? (plotly ? "" : missing);
    if (reason) {
      this.drop();
      fill(this.node, element("p", { class: "reason" }, reason));
      this.due(false);
    } else if (plotly) {
      if (!this.chart) {
        this.chart = element("div");
        fill(this.node, this.chart);
      }
      const layout = { ...this.figure.layout, template: templates[theme] ?? {}, shapes: this.shapes(), autosize: true };
      // Plotly writes into what it is given
      plotly.react(this.chart, structuredClone(this.figure.data), structuredClone(layout), { responsive: true, displaylogo: false });
      this.listen();
      this.due(false);
    }
  }

  listen() {
    if (!this.onstep || this.chart.listening) return;
    this.chart.listening = true;
    this.chart.on("plotly_click", (event) => {
      const x = Number(event.points?.[0]?.x);
      if (Number.isFinite(x)) this.onstep(x);
    });
  }

  // The chosen step, as a line through every panel.
  shapes() {
    const own = this.figure.layout?.shapes ?? [];
    if (!this.cursor || this.step === null) return own;
    const axes = Object.keys(this.figure.layout).filter((key) => /^xaxis\d*$/.test(key));
    return [
      ...own,
      ...axes.map((axis) => ({
        type: "line", xref: axis.replace("axis", ""), yref: `${axis.replace("xaxis", "y")} domain`,
        x0: this.step, x1: this.step, y0: 0, y1: 1, line: { color: theme === "dark" ? "#E6EAEF" : "#1F2328", width: 1.5 },
      })),
    ];
  }

  drop() {
    if (this.chart) plotly?.purge(this.chart);
    this.chart = null;
  }
}
