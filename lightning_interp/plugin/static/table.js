// The records of one event: sorted by a click, copied as tab-separated text.
import { element, fill, number } from "./dom.js";

const COLUMNS = ["measure", "layer", "variable", "by", "value", "low", "high", "note"];
const NUMERIC = new Set(["value", "low", "high"]);

export class Table {
  constructor(onmore) {
    this.records = [];
    this.total = 0;
    this.sort = { column: null, up: true };
    this.said = element("span", { class: "said", role: "status" });
    this.copy = element("button", { type: "button", onclick: () => this.toClipboard() }, "Copy as TSV");
    this.more = element("button", { type: "button", hidden: true, onclick: () => onmore(this.records.length) }, "Show more");
    this.heads = Object.fromEntries(
      COLUMNS.map((name) => [
        name,
        element("th", { scope: "col", "aria-sort": "none" }, element("button", { type: "button", onclick: () => this.by(name) }, name)),
      ]),
    );
    this.body = element("tbody");
    this.count = element("span", { class: "when" });
    const table = element("table", {}, element("thead", {}, element("tr", {}, Object.values(this.heads))), this.body);
    this.node = element(
      "div", {},
      element("p", { class: "controls" }, this.copy, this.said, this.count),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Records of the chosen event" }, table),
      this.more,
    );
  }

  show(records, total) {
    this.records = records;
    this.total = total;
    this.said.textContent = "";
    this.draw();
  }

  by(column) {
    this.sort = { column, up: this.sort.column === column ? !this.sort.up : true };
    this.draw();
  }

  sorted() {
    const { column, up } = this.sort;
    if (!column) return this.records;
    const sign = up ? 1 : -1;
    const compare = (a, b) => (NUMERIC.has(column) ? a - b : String(a).localeCompare(String(b)));
    return [...this.records].sort((a, b) => {
      const empty = (a[column] === null) - (b[column] === null); // what is not there comes last either way
      return empty || (a[column] === null ? 0 : sign * compare(a[column], b[column]));
    });
  }

  draw() {
    for (const [name, head] of Object.entries(this.heads)) {
      head.setAttribute("aria-sort", name !== this.sort.column ? "none" : this.sort.up ? "ascending" : "descending");
    }
    fill(this.body, this.sorted().map((record) => element("tr", {}, COLUMNS.map((name) => cell(record, name)))));
    this.count.textContent = this.total > this.records.length ? `${this.records.length} of ${this.total} records` : `${this.total} records`;
    this.more.hidden = this.total <= this.records.length;
    this.copy.disabled = !this.records.length;
  }

  async toClipboard() {
    const line = (values) => values.map(cellText).join("\t");
    const columns = ["step", "epoch", ...COLUMNS];
    const text = [line(columns), ...this.sorted().map((record) => line(columns.map((name) => record[name])))].join("\n");
    this.said.textContent = (await copied(text)) ? "Copied." : "The browser did not allow it.";
  }
}

// A name that begins as a formula does would be worked out by the spreadsheet that it is pasted into.
function cellText(value) {
  const text = String(value ?? "").replace(/[\t\r\n]+/g, " ");
  return typeof value === "string" && /^\s*[=+@-]/.test(text) ? `'${text}` : text;
}

function cell(record, name) {
  const value = record[name];
  if (name === "value" && value === null) {
    return element("td", { class: "withheld" }, `withheld: ${record.note ?? "it could not be measured"}`);
  }
  if (NUMERIC.has(name)) return element("td", { class: "number", title: value === null ? null : String(value) }, value === null ? "" : number(value));
  return element("td", {}, value ?? "");
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text); // only where the page's address is trusted
    return true;
  } catch {
    const area = element("textarea", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
