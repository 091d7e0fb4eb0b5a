// j and k walk the rows of the worklist, Enter opens one (the focus is on its link).
const links = [...document.querySelectorAll("[data-row] a")];
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !["j", "k"].includes(event.key)) return;
  if (event.target.closest("input, textarea, select, dialog")) return;
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? 0 : at + (event.key === "j" ? 1 : -1);
  links[Math.min(Math.max(next, 0), links.length - 1)]?.focus();
});
