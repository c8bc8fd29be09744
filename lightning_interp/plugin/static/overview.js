// What every chosen run uses at the chosen step: a sentence, a bar, the equation.
import { element, when } from "./dom.js";

const SIGNS = { bad: "▲", some: "△", good: "✓", unknown: "○" };

export function card(event) {
  const head = element("h3", {}, event.label);
  if (event.step === null) return element("article", { class: "card" }, head, element("p", {}, "No event by this step."));
  const { verdict } = event;
  return element(
    "article", { class: `card ${verdict.level}`, "data-run": event.label },
    element("header", {}, head, element("span", { class: "when" }, when(event.step, event.epoch))),
    element("p", { class: "verdict" }, element("span", { class: "sign", "aria-hidden": "true" }, SIGNS[verdict.level]), verdict.text),
    verdict.parts.length ? bar(verdict.parts) : "",
    verdict.worst ? element("p", { class: "worst" }, verdict.worst) : "",
    equation(event.equation),
    event.alarms.map((alarm) => element("p", { class: "alarm" }, alarm)),
    notes(event.notes),
  );
}

function bar(parts) {
  const total = Math.max(1, parts.reduce((sum, part) => sum + Math.max(0, part.share), 0));
  const pieces = parts.map((part) => {
    const width = (100 * Math.max(0, part.share)) / total;
    const piece = element("span", { class: part.name === "unexplained" ? "piece unexplained" : "piece", title: `${part.name}: ${part.text}` });
    piece.style.width = `${width}%`;
    piece.style.setProperty("--colour", part.colour);
    return piece;
  });
  const keys = parts.map((part) => {
    const swatch = element("span", { class: part.name === "unexplained" ? "swatch unexplained" : "swatch" });
    swatch.style.setProperty("--colour", part.colour);
    return element("li", { "data-name": part.name }, swatch, element("span", {}, part.name), " ", element("b", {}, part.text));
  });
  return [element("div", { class: "bar", "aria-hidden": "true" }, pieces), element("ul", { class: "keys" }, keys)];
}

// The line with the coefficients stands out; the rest of the event's text is below it.
function equation(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("note: "));
  const main = lines.findIndex((line) => line.endsWith("+ unexplained"));
  if (main < 0) return lines.length ? element("pre", { class: "equation" }, lines.join("\n")) : "";
  const rest = lines.slice(main + 1);
  return [
    element("p", { class: "equation" }, terms(lines[main])),
    rest.length ? element("details", {}, element("summary", {}, "The event as text"), element("pre", {}, lines.join("\n"))) : "",
  ];
}

// A term and its interval stay on one line.
function terms(line) {
  return line.split(/ (?=[+−] )/).flatMap((term) => [element("span", {}, term), " "]);
}

function notes(found) {
  if (!found.length) return "";
  const list = element("ul", {}, found.map((note) => element("li", {}, note)));
  return element("details", { class: "notes" }, element("summary", {}, found.length === 1 ? "1 note" : `${found.length} notes`), list);
}
