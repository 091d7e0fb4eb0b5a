// What every page needs: live regions, copy on click, keyboard shortcuts. Pages work without any of it.
import { watchFreshness } from "./lib/live.js";

watchFreshness();

document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const text = copy.dataset.copy || copy.textContent;
    try { await navigator.clipboard.writeText(text); } catch { return; }
    const before = copy.textContent;
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = before; }, 900);
  }
  for (const open of document.querySelectorAll("details.menu[open], details.more[open]")) {
    if (!open.contains(event.target)) open.removeAttribute("open");
  }
});

const PLACES = { o: "/", d: "/deployments/", m: "/models/", j: "/jobs/" };
let going = false;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    for (const open of document.querySelectorAll("details.menu[open], details.more[open]")) open.removeAttribute("open");
    return;
  }
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  if (going && PLACES[event.key]) { location.href = PLACES[event.key]; return; }
  going = event.key === "g";
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) { event.preventDefault(); search.focus(); search.select?.(); }
  } else if (event.key === "?") {
    document.getElementById("shortcuts")?.showModal();
  }
});
