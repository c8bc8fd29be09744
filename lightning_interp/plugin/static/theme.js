// Light or dark: as the reader says, else as TensorBoard around this page is, else as the system is.
import { element } from "./dom.js";

const system = window.matchMedia("(prefers-color-scheme: dark)");

function around() {
  try {
    if (window.parent !== window) return window.parent.document.body.classList.contains("dark-mode") ? "dark" : "light";
  } catch {
    // the page around is not ours to read, as in some notebooks
  }
  return system.matches ? "dark" : "light";
}

export function themePicker(onchange) {
  const names = ["auto", "light", "dark"];
  const picker = element("select", {}, names.map((name) => element("option", { value: name }, name)));
  const apply = () => {
    const theme = picker.value === "auto" ? around() : picker.value;
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    onchange(theme);
  };
  picker.addEventListener("change", apply);
  system.addEventListener("change", apply);
  try {
    new MutationObserver(apply).observe(window.parent.document.body, { attributes: true, attributeFilter: ["class"] });
  } catch {
    // as above
  }
  apply();
  return element("label", {}, "Theme ", picker);
}
