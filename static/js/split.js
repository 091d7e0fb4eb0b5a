// The split editor: sliders and number fields that are linked, in whole basis points, so that they always total 100 %.
// Without this script the number fields are a plain form, and the server checks the total.

const WHOLE = 10000;
const ALL = -2;

/** Shares after `index` was set to `wanted`: what it gained or lost is taken from the others in proportion. */
export function relink(shares, index, wanted) {
  const next = shares.slice();
  next[index] = Math.max(0, Math.min(WHOLE, Math.round(wanted)));
  const left = WHOLE - next[index];
  const others = shares.map((_, i) => i).filter((i) => i !== index);
  if (!others.length) { next[index] = WHOLE; return next; }
  const before = others.reduce((sum, i) => sum + shares[i], 0);
  let given = 0;
  const parts = others.map((i) => {
    const exact = before > 0 ? (left * shares[i]) / before : (i === others[0] ? left : 0);
    const floor = Math.floor(exact);
    given += floor;
    return { i, floor, rest: exact - floor };
  });
  parts.sort((a, b) => b.rest - a.rest || a.i - b.i);
  for (const part of parts) {
    const extra = given < left && (before > 0 ? shares[part.i] > 0 : part.i === others[0]) ? 1 : 0;
    next[part.i] = part.floor + extra;
    given += extra;
  }
  return next;
}

const say = (points) => String(points / 100);

function bind(form) {
  const rows = [...form.querySelectorAll("[data-version]")];
  const now = rows.map((row) => Number(row.dataset.points));
  let shares = now.slice();
  const fields = rows.map((row) => row.querySelector("input[name^=share_]"));
  const sliders = rows.map((row) => row.querySelector("input[type=range]"));
  const segments = [...form.querySelectorAll("[data-after] i")];
  const apply = form.querySelector("button[data-apply]");
  const total = form.closest(".card").querySelector("[data-total]");
  const shadows = [...form.querySelectorAll("input[name^=shadow_]")];
  const shadowNow = shadows.map((field) => field.value);

  const show = (typing = -1) => {
    shares.forEach((points, i) => {
      if (typing !== ALL && i !== typing) fields[i].value = (points / 100).toFixed(2);
      sliders[i].value = points;
      sliders[i].style.setProperty("--at", `${points / 100}%`);
      sliders[i].setAttribute("aria-valuetext", `${say(points)} %`);
      if (segments[i]) { segments[i].style.width = `${points / 100}%`; segments[i].hidden = points === 0; }
    });
    total.textContent = `${(shares.reduce((a, b) => a + b, 0) / 100).toFixed(2)} %`;
    const moved = rows.map((row, i) => i).filter((i) => shares[i] !== now[i]);
    const shadowed = shadows.some((field, i) => field.value !== shadowNow[i]);
    apply.disabled = !moved.length && !shadowed && form.dataset.first === undefined;
    // The version that gains says best what the change is.
    const main = moved.sort((a, b) => (shares[b] - now[b]) - (shares[a] - now[a]))[0];
    apply.textContent = main !== undefined
      ? `Apply: version ${rows[main].dataset.version} from ${say(now[main])} % to ${say(shares[main])} %`
      : shadowed ? "Apply: change what is shadowed" : form.dataset.first === undefined ? "Nothing to apply" : "Apply";
  };

  rows.forEach((row, i) => {
    sliders[i].hidden = false;
    sliders[i].addEventListener("input", () => { shares = relink(shares, i, Number(sliders[i].value)); show(); });
    fields[i].addEventListener("input", () => {
      const wanted = Number(fields[i].value.replace(",", ".").replace("%", "").trim());
      if (Number.isFinite(wanted) && fields[i].value.trim() !== "") { shares = relink(shares, i, wanted * 100); show(i); }
    });
    fields[i].addEventListener("change", () => show());
  });
  for (const field of shadows) field.addEventListener("input", () => show());
  const reset = form.querySelector("button[data-reset]");
  reset.hidden = false;
  reset.addEventListener("click", () => {
    shares = now.slice();
    shadows.forEach((field, i) => { field.value = shadowNow[i]; });
    show();
  });
  // After a refusal the fields keep what was typed, until something is moved.
  show(form.dataset.typed === undefined ? -1 : ALL);
}

for (const form of document.querySelectorAll("form[data-split]")) bind(form);
