// The result page: the strip of pictures, the tools under the viewer, the keyboard. The suggestion itself is HTML.
import { bindGestures } from "./gestures.js";
import { decode, presets } from "./pixels.js";
import { Viewer } from "./viewer.js";

const HEAT_MAP_AGAIN_MS = 3000;

const stage = document.querySelector("[data-stage]");
if (stage) open(stage);

// A picture that there will not be; the message says why.
class Missing extends Error {}

async function imageOf(address) {
  const answer = await fetch(address, { headers: { "X-Requested-With": "fetch" } });
  if (answer.status === 404) throw new Missing((await answer.json()).detail);
  if (answer.status !== 200) throw new Error(String(answer.status));
  return createImageBitmap(await answer.blob());
}

function open(root) {
  const canvas = root.querySelector("canvas");
  const said = root.querySelector("[data-said]");
  const tools = document.querySelector("[data-tools]");
  const tool = (name) => tools.querySelector(`[data-${name}]`);
  const thumbs = [...document.querySelectorAll("[data-picture]")];
  const viewer = new Viewer(canvas);
  const frames = new Map();
  let current = null;
  let heatTimer = 0;

  bindGestures(viewer);
  root.querySelector("noscript")?.remove();
  tools.hidden = false;

  // What the file's pixels call for; the page says most of it already.
  const note = (words) => {
    const line = document.querySelector("[data-note]");
    const known = [...document.querySelectorAll("[data-warning]")].some((each) => each.textContent.trim() === words);
    line.textContent = words;
    line.hidden = !words || known;
  };
  const say = (words) => { said.textContent = words; said.hidden = !words; };

  async function pick(thumb) {
    if (!thumb || thumb === current) return;
    current = thumb;
    for (const each of thumbs) each.removeAttribute("aria-current");
    thumb.setAttribute("aria-current", "true");
    clearTimeout(heatTimer);
    delete canvas.dataset.ready;
    canvas.setAttribute("aria-label", thumb.dataset.label);
    if (tool("heat")) {
      tool("heat").value = 0;
      tool("heat-said").textContent = "off";
      const top = document.querySelector(`[data-scores="${thumb.dataset.picture}"]`)?.dataset.top;
      if (top) tool("heat-label").value = top;
    }
    if (!frames.has(thumb)) {
      say("Fetching the picture…");
      const answer = await fetch(thumb.dataset.pixels, { headers: { "X-Requested-With": "fetch" } }).catch(() => null);
      if (current !== thumb) return;
      if (!answer?.ok || !answer.headers.get("Content-Type")?.startsWith("application/octet-stream")) {
        say("The picture did not come. Reload the page to try again.");
        return;
      }
      frames.set(thumb, decode(await answer.arrayBuffer()));
      if (current !== thumb) return;
    }
    viewer.show(frames.get(thumb));
    say("");
    note(frames.get(thumb).note || "");
    offerPresets();
    canvas.dataset.ready = thumb.dataset.picture;
  }

  function offerPresets() {
    const select = tool("preset");
    const ways = presets(viewer.frame);
    select.replaceChildren(...ways.map((way, index) => new Option(way.label, String(index))), new Option("Own window", "own"));
    select.closest("label").hidden = ways.length < 2;
  }

  viewer.addEventListener("view", () => {
    const { center, width, inverted } = viewer.window;
    const exact = viewer.frame.dtype === "float32" && width < 50;
    for (const [name, value] of [["window", width], ["level", center]]) {
      if (document.activeElement !== tool(name)) tool(name).value = exact ? value.toFixed(3) : Math.round(value);
    }
    tool("zoom").textContent = `${Math.round(viewer.zoom * 100)} %`;
    tool("invert").setAttribute("aria-pressed", String(inverted));
    tool("model-view").setAttribute("aria-pressed", String(Boolean(viewer.instead)));
    canvas.style.touchAction = viewer.zoom > 1 ? "none" : "pan-y";
    const at = presets(viewer.frame).findIndex((way) => way.table === viewer.window.table && (way.table || (way.center === center && way.width === width)));
    tool("preset").value = at < 0 ? "own" : String(at);
  });

  // Window and level
  for (const [name, field] of [["window", "width"], ["level", "center"]]) {
    tool(name).addEventListener("input", () => {
      const value = tool(name).valueAsNumber;
      if (viewer.frame && Number.isFinite(value) && (name === "level" || value > 0)) viewer.setWindow({ [field]: value, table: false });
    });
  }
  tool("preset").addEventListener("change", () => {
    const way = presets(viewer.frame)[Number(tool("preset").value)];
    if (way) viewer.setWindow(way);
  });

  // The heat map: off at opening, fetched when first wanted, asked for again until it is computed
  async function heat() {
    const slider = tool("heat");
    if (!slider || !current) return;
    clearTimeout(heatTimer);
    const strength = Number(slider.value) / 100;
    const words = tool("heat-said");
    if (!strength) { words.textContent = "off"; viewer.lay(null, 0); return; }
    const address = `${current.dataset.heatMap}?label=${encodeURIComponent(tool("heat-label").value)}`;
    if (viewer.overlay?.address !== address) {
      const asked = current;
      words.textContent = "…";
      try {
        const image = await imageOf(address);
        if (asked !== current) return;
        viewer.overlay = image;
        viewer.overlay.address = address;
      } catch (error) {
        if (error instanceof Missing) { words.textContent = "failed"; say(error.message); return; }
        words.textContent = "not computed yet";
        heatTimer = setTimeout(heat, HEAT_MAP_AGAIN_MS);
        return;
      }
    }
    words.textContent = `${slider.value} %`;
    viewer.lay(viewer.overlay, Number(slider.value) / 100);
  }
  tool("heat")?.addEventListener("input", heat);
  tool("heat-label")?.addEventListener("change", heat);
  // The suggestion has come: the map of its highest score is offered first.
  document.addEventListener("htmx:afterSettle", () => {
    const top = document.querySelector(`[data-scores="${current?.dataset.picture}"]`)?.dataset.top;
    if (top && tool("heat") && tool("heat").value === "0") tool("heat-label").value = top;
  });

  tool("model-view").addEventListener("click", async () => {
    if (viewer.instead) { viewer.showInstead(null); say(""); return; }
    const asked = current;
    try {
      const image = await imageOf(current.dataset.modelView);
      if (asked !== current) return;
      viewer.showInstead(image);
      say(`What the model saw: ${image.width} × ${image.height} pixels.`);
    } catch { say("What the model saw cannot be shown now. Try again in a moment."); }
  });
  tool("invert").addEventListener("click", () => viewer.frame && viewer.invert());
  tool("closer").addEventListener("click", () => viewer.frame && viewer.zoomBy(1.25));
  tool("further").addEventListener("click", () => viewer.frame && viewer.zoomBy(0.8));
  tool("reset").addEventListener("click", () => {
    if (!viewer.frame) return;
    if (tool("heat")) { tool("heat").value = 0; heat(); }
    say("");
    viewer.reset();
  });

  const step = (by) => pick(thumbs[thumbs.indexOf(current) + by]);
  const KEYS = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => step(-1), ArrowDown: () => step(1),
    i: () => viewer.invert(), r: () => tool("reset").click(), "+": () => viewer.zoomBy(1.25), "=": () => viewer.zoomBy(1.25), "-": () => viewer.zoomBy(0.8),
  };
  const PAN = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !viewer.frame) return;
    if (event.target.closest("input, textarea, select, dialog, [contenteditable]")) return;
    if (event.shiftKey && PAN[event.key]) { event.preventDefault(); viewer.panBy(...PAN[event.key]); return; }
    const act = KEYS[event.key];
    // Up and down scroll the page unless the picture itself has the focus.
    if (!act || (["ArrowUp", "ArrowDown"].includes(event.key) && document.activeElement !== canvas)) return;
    event.preventDefault();
    act();
  });
  for (const thumb of thumbs) thumb.addEventListener("click", (event) => { event.preventDefault(); pick(thumb); });
  pick(thumbs.find((thumb) => thumb.hasAttribute("aria-current")) || thumbs[0]);
}
