// Elements are made here and nowhere from HTML text: whatever a name holds, it is text.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

// As `report/wording.py` writes numbers.
export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value).replace("-", "−");
  return (size >= 0.001 && size < 1e6 ? value.toFixed(size >= 100 ? 1 : 4) : value.toExponential(2)).replace("-", "−");
}

export function when(step, epoch) {
  return epoch === null || epoch === undefined ? `step ${step}` : `step ${step}, epoch ${epoch}`;
}
