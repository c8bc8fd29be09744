// Features that nobody named, with the samples that show them most.
import { element, number } from "./dom.js";

const SAID = [
  ["contribution", "share of the output's variance"], ["suspicion", "suspicion"], ["causal", "causal"], ["stability", "stability"],
  ["flip", "flips"], ["early", "early"], ["target", "correlation with the label"],
];
const FIRST = 6; // shown at once, the most suspicious

export function discovered(event) {
  const cards = event.features.slice(0, FIRST).map(feature);
  const rest = event.features.slice(FIRST);
  return element(
    "div", { class: "layer" },
    element("h3", {}, `${event.label}, ${event.layer}, step ${event.step}`),
    element("div", { class: "cards" }, cards),
    rest.length ? more(rest) : "",
  );
}

function more(rest) {
  const details = element("details", {}, element("summary", {}, `${rest.length} more`));
  // not before they are asked for: they hold pictures
  details.addEventListener("toggle", () => details.append(element("div", { class: "cards" }, rest.map(feature))), { once: true });
  return details;
}

function feature(found) {
  const facts = SAID.filter(([key]) => found[key] !== null).map(([key, name]) => [element("dt", {}, name), element("dd", {}, number(found[key]))]);
  const groups = Object.entries(found.groups).map(([cell, code]) => element("li", {}, `${cell}: ${number(code)}`));
  return element(
    "article", { class: "card" },
    element("h4", {}, found.promoted ? `${found.name}: ${found.promoted}` : found.name),
    element("dl", {}, facts),
    groups.length ? element("details", {}, element("summary", {}, "Mean code by group"), element("ul", {}, groups)) : "",
    samples(found.strongest, "Strongest samples", true, found.name),
    samples(found.weakest, "Weakest samples", false, found.name),
  );
}

function samples(found, title, open, name) {
  const content = found ? drawn(found, `${title} of ${name}`) : "";
  return content ? element("details", { open }, element("summary", {}, title), content) : "";
}

function drawn(found, label) {
  if (found.kind === "image") return element("img", { src: `data:image/png;base64,${found.png}`, alt: label });
  if (found.kind === "text") return element("ol", {}, found.texts.map((text) => element("li", {}, text)));
  const row = (cells, tag) => element("tr", {}, cells.map((value) => element(tag, {}, typeof value === "string" ? value : number(value))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, row(found.columns, "th")), element("tbody", {}, found.rows.map((r) => row(r, "td")))));
}
