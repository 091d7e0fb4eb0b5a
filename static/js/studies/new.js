// A new study: files are looked at and blacked out here, then each is sent by itself with its progress, then the study.
// The draft lies on the server from the first file on, so a reload, or a session that ended, loses no sent picture.
// Without this script the form posts everything at once.
import { Blackout } from "./blackout.js";
import { read, thumbnail } from "./reading.js";
import { BROKEN, freshToken, post } from "./sending.js";

const size = (bytes) => bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
const form = document.querySelector("form[data-new]");
if (form) bind(form);

function bind(root) {
  const part = (name) => root.querySelector(`[data-${name}]`);
  const input = root.querySelector("input[name=file]");
  const list = part("staged");
  const template = document.querySelector("#staged-item");
  const blackout = new Blackout(document.querySelector("[data-blackout]"));
  const most = Number(root.dataset.most);
  const tokenField = root.querySelector("[name=csrfmiddlewaretoken]");
  let token = tokenField.value;
  let draft = root.dataset.draft ? { add: root.dataset.add, send: root.dataset.send, address: root.dataset.draft } : null;
  let items = [];
  let busy = false;

  const stored = () => document.querySelectorAll("[data-stored]").length;
  const refuse = (message, signIn = false) => {
    part("refusal-words").textContent = message;
    part("sign-in").hidden = !signIn;
    part("refusal").hidden = !message;
    if (message) part("refusal").scrollIntoView({ block: "nearest" });
  };
  const relabel = () => {
    const ready = items.filter((item) => !item.refused).length;
    const count = ready + stored();
    part("send").textContent = count > 1 ? `Send ${count} pictures` : "Send";
    part("send").disabled = busy;
  };

  async function stage(file) {
    const row = template.content.firstElementChild.cloneNode(true);
    const item = { file, row, rectangles: [], image: null, refused: false, sent: false };
    items.push(item);
    list.append(row);
    const find = (name) => row.querySelector(`[data-${name}]`);
    item.find = find;
    find("name").textContent = file.name;
    find("size").textContent = size(file.size);
    find("remove").addEventListener("click", () => { items = items.filter((other) => other !== item); row.remove(); relabel(); });
    relabel();
    try {
      item.image = await read(file, { preview: root.dataset.preview, token });
    } catch (error) {
      wrong(item, error.message, true);
      return;
    }
    find("size").textContent = `${size(file.size)} · ${item.image.width} × ${item.image.height}`;
    thumbnail(item.image, find("thumbnail"));
    find("black").hidden = false;
    find("black").addEventListener("click", async () => {
      item.rectangles = await blackout.edit(item.image, item.rectangles);
      thumbnail(item.image, find("thumbnail"), item.rectangles);
      const count = item.rectangles.length;
      find("blacked").textContent = count ? `${count} ${count === 1 ? "area" : "areas"} blacked out` : "";
    });
  }

  function wrong(item, message, refused) {
    item.refused = refused;
    item.find("wrong").textContent = message;
    item.find("wrong").hidden = false;
    item.find("progress").hidden = true;
    item.row.classList.toggle("bad", true);
    relabel();
  }

  function choose(files) {
    refuse("");
    const room = most - stored() - items.length;
    for (const file of [...files].slice(0, Math.max(room, 0))) stage(file);
    if (files.length > room) refuse(`A study holds up to ${most} pictures; the rest was left out.`);
    input.value = "";
  }
  input.addEventListener("change", () => choose(input.files));
  const drop = part("drop");
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); choose(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => { if (event.clipboardData?.files.length) choose(event.clipboardData.files); });
  window.addEventListener("beforeunload", (event) => { if (!busy && items.some((item) => !item.sent && !item.refused)) event.preventDefault(); });

  // Throws what the person reads; `signedOut` on it where signing in again mends it.
  async function ask(address, body, progress) {
    const { status, answer, signedOut } = await post(address, body, token, progress);
    if (signedOut) {
      const said = "Your session has ended. What you chose is still here: sign in again in the new tab, then press Send once more.";
      throw Object.assign(new Error(said), { signedOut });
    }
    if (status >= 400) {
      const places = (answer.errors || []).map((each) => each.msg).filter((text) => text !== answer.detail);
      throw Object.assign(new Error([answer.detail || `It was refused (${status}).`, ...places].join(" ")), { refused: status < 500 });
    }
    return answer;
  }

  async function openDraft() {
    const body = new FormData(root);
    body.delete("file");
    const made = await ask(root.action, body);
    draft = made;
    // A reload, or the way back from signing in, leads to the draft.
    history.replaceState(null, "", made.address);
    root.dataset.signIn = made.address;
    part("sign-in").href = `/accounts/login/?next=${encodeURIComponent(made.address)}`;
  }

  async function sendFile(item) {
    const body = new FormData();
    body.append("file", item.file, "picture");
    body.append("blackouts", JSON.stringify(item.rectangles));
    const bar = item.find("bar");
    item.find("progress").hidden = false;
    item.find("wrong").hidden = true;
    item.row.classList.remove("bad");
    for (const name of ["remove", "black"]) item.find(name).disabled = true;
    try {
      await ask(draft.add, body, (loaded, total) => {
        bar.style.width = `${(loaded / total) * 100}%`;
        item.find("progress-words").textContent = loaded < total ? `${size(loaded)} of ${size(total)}` : "Removing identifiers…";
      });
    } finally {
      for (const name of ["remove", "black"]) item.find(name).disabled = false;
    }
    item.sent = true;
    item.row.dataset.stored = "";
    item.find("progress-words").textContent = "Stored, identifiers removed";
    for (const name of ["remove", "black"]) item.find(name).hidden = true;
  }

  async function send() {
    if (draft === null) await openDraft();
    let failed = 0;
    for (const item of items.filter((each) => !each.sent && !each.refused)) {
      try {
        await sendFile(item);
      } catch (error) {
        if (!error.refused) throw error;
        wrong(item, error.message, true);
        failed += 1;
      }
    }
    items = items.filter((item) => !item.sent);
    if (failed || items.length) throw new Error("Some pictures were refused: remove them or choose others, then press Send again.");
    const { address } = await ask(draft.send, new FormData());
    location.href = address;
  }

  root.addEventListener("submit", async (event) => {
    if (event.submitter?.hasAttribute("formaction")) return;
    event.preventDefault();
    if (busy) return;
    if (!items.length && !stored()) { refuse("Choose at least one picture."); return; }
    busy = true;
    relabel();
    refuse("");
    part("send").textContent = "Sending…";
    try {
      // The field goes with the form, and the server reads it before the header.
      if (part("refusal").dataset.stale) tokenField.value = token = (await freshToken(draft?.address || location.href)) || token;
      await send();
    } catch (error) {
      busy = false;
      part("refusal").dataset.stale = "yes";
      const kept = error.message === BROKEN ? " What was sent is kept in the draft; press Send to go on." : "";
      refuse(error.message + kept, Boolean(error.signedOut));
      relabel();
    }
  });
  part("with-script").hidden = false;
  drop.classList.add("scripted");
  // Chosen before this script was there.
  if (input.files.length) choose(input.files);
  input.required = false;
  relabel();
}
