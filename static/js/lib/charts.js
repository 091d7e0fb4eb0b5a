// Draws every [data-chart] from the JSON that the page carries. Colours are named by token ("--v1") in the figure and
// looked up here, so that a chart follows the theme; zoom on one chart zooms all that share the time axis.

function paint(value, style) {
  if (typeof value === "string") {
    return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  }
  if (Array.isArray(value)) return value.map((item) => paint(item, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, style)]));
  }
  return value;
}

const ranges = new Map();

function draw(element) {
  const source = document.getElementById(element.dataset.chart);
  if (!source || !window.Plotly) return;
  const style = getComputedStyle(document.documentElement);
  const figure = paint(JSON.parse(source.textContent), style);
  const axis = element.dataset.axis || "time";
  if (ranges.has(axis)) figure.layout.xaxis = { ...figure.layout.xaxis, range: ranges.get(axis), autorange: false };
  window.Plotly.react(element, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  if (element.dataset.bound) return;
  element.dataset.bound = "1";
  element.on("plotly_relayout", (change) => {
    const range = change["xaxis.range[0]"] ? [change["xaxis.range[0]"], change["xaxis.range[1]"]] : null;
    if (!range && !change["xaxis.autorange"]) return;
    if (range) ranges.set(axis, range); else ranges.delete(axis);
    for (const other of document.querySelectorAll(`[data-chart][data-axis="${axis}"]`)) {
      if (other !== element && other.dataset.bound) {
        window.Plotly.relayout(other, range ? { "xaxis.range": range } : { "xaxis.autorange": true });
      }
    }
  });
}

export function drawAll(root = document) {
  for (const element of root.querySelectorAll("[data-chart]")) draw(element);
}

drawAll();
document.addEventListener("htmx:afterSettle", () => drawAll());
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
