// Live regions: an element with hx-get, hx-trigger="refresh" and data-live="SECONDS" is asked again while the tab is
// visible. The server answers 304 when nothing changed (ETag), and then nothing is swapped.

const LOOK_EVERY_MS = 250;
const etags = new WeakMap();
let freshAt = Date.now();

function busy(region) {
  // A person who types in a region, or has a part of it open, must not lose it to a refresh.
  const active = document.activeElement;
  return region.contains(active) && active.matches("input, textarea, select");
}

export function watchFreshness() {
  document.addEventListener("htmx:configRequest", (event) => {
    const region = event.detail.elt;
    if (region.dataset?.live && etags.has(region)) event.detail.headers["If-None-Match"] = etags.get(region);
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, elt } = event.detail;
    if (!elt.dataset?.live) return;
    if (xhr.status === 304) { event.detail.shouldSwap = false; event.detail.isError = false; }
    if (xhr.status === 200 && xhr.getResponseHeader("ETag")) etags.set(elt, xhr.getResponseHeader("ETag"));
    if (xhr.status < 400) freshAt = Date.now();
  });
  const due = new WeakMap();
  const look = () => {
    if (document.visibilityState === "visible") {
      for (const region of document.querySelectorAll("[data-live]")) {
        const next = due.get(region) ?? Date.now() + Number(region.dataset.live) * 1000;
        if (Date.now() >= next && !busy(region)) {
          window.htmx?.trigger(region, "refresh");
          due.set(region, Date.now() + Number(region.dataset.live) * 1000);
        } else if (!due.has(region)) {
          due.set(region, next);
        }
      }
    }
    const dot = document.querySelector(".live[data-age]");
    if (dot) {
      const age = Math.max(0, Math.round((Date.now() - freshAt) / 1000)) + Number(dot.dataset.age || 0);
      dot.dataset.state = age > 30 ? "late" : "on";
      dot.querySelector("span").textContent = age > 30 ? `Late · ${age} s` : `Live · ${age} s`;
      dot.title = `The figures are ${age} s old`;
    }
  };
  look();
  setInterval(look, LOOK_EVERY_MS);
}
