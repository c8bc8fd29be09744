"use strict";
const { figures, templates } = JSON.parse(document.getElementById("data").textContent);
const places = [...document.querySelectorAll(".figure")];
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => templates[dark.matches ? "dark" : "light"];
const drawn = places.map((place, i) =>
  Plotly.newPlot(place, figures[i].data, { ...figures[i].layout, width: 960, template: theme() }, { displaylogo: false }));
const recolour = (template) => places.forEach((place) => Plotly.relayout(place, { template }));
dark.addEventListener("change", () => recolour(theme()));
addEventListener("beforeprint", () => { if (dark.matches) recolour(templates.light); });
addEventListener("afterprint", () => { if (dark.matches) recolour(theme()); });
Promise.all(drawn).then(() => { document.documentElement.dataset.ready = "yes"; });

const table = document.getElementById("records");
const value = (row, i) => {
  const cell = row.cells[i];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};
const order = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");  // what is missing comes last, whichever way
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
};
const sort = (head) => {
  const up = head.ariaSort !== "ascending";
  [...table.tHead.rows[0].cells].forEach((cell) => { cell.ariaSort = null; });
  head.ariaSort = up ? "ascending" : "descending";
  const rows = [...table.tBodies[0].rows];
  const i = head.cellIndex;
  rows.sort((a, b) => {
    const [x, y] = [value(a, i), value(b, i)];
    return x === "" || y === "" ? order(x, y) : (up ? 1 : -1) * order(x, y);
  });
  table.tBodies[0].append(...rows);
};
table?.tHead.addEventListener("click", (event) => { if (event.target.closest("th")) sort(event.target.closest("th")); });
table?.tHead.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(event.target.closest("th")); });
// A name that begins as a formula does would be worked out by the spreadsheet that it is pasted into.
const copied = (cell) => cell.dataset.value ?? cell.textContent.replace(/[\t\r\n]+/g, " ").replace(/^(?=\s*[=+@-])/, "'");
document.getElementById("copy")?.addEventListener("click", async (event) => {
  const lines = [...table.rows].map((row) => [...row.cells].map(copied).join("\t"));
  const area = Object.assign(document.createElement("textarea"), { value: lines.join("\n") });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");  // without asking for the clipboard, which a file on disk may not have
  area.remove();
  event.target.textContent = done ? "Copied" : "The browser does not let it be copied";
});
