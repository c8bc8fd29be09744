// Elements are made here and nowhere from HTML text: whatever a name holds, it is text.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...flat(children));
  return made;
}

export function fill(node, ...children) {
  node.replaceChildren(...flat(children));
  return node;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== "");
}

// With a true minus, as in the figures; a dash where there is none.
export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size === 0 || (size >= 0.001 && size < 1e6) ? value.toFixed(size >= 100 ? 1 : 4) : value.toExponential(2);
  return text.replaceAll("-", "−");
}

export function when(step, epoch) {
  return epoch === null || epoch === undefined ? `step ${step}` : `step ${step}, epoch ${epoch}`;
}
