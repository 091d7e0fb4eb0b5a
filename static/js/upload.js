// Upload with progress: name, size and hash at once, then rate and time left. Without this script the form just posts.

const words = (bytes) => bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;

async function hashOf(file) {
  // Larger files would have to be in memory whole; the server says their hash after the upload.
  if (!crypto.subtle || file.size > 256e6) return "";
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function bind(form) {
  const input = form.querySelector("input[name=file]");
  const drop = form.querySelector("[data-drop]");
  const chosen = form.querySelector("[data-chosen]");
  const progress = form.querySelector("[data-progress]");
  const refusal = form.querySelector("[data-refusal]");
  const send = form.querySelector("[data-send]");

  const show = async () => {
    const file = input.files[0];
    chosen.textContent = file ? `${file.name} · ${words(file.size)}` : "";
    if (!file) return;
    const hash = await hashOf(file);
    if (hash && input.files[0] === file) chosen.textContent = `${file.name} · ${words(file.size)} · sha256 ${hash.slice(0, 12)}…`;
  };
  input.addEventListener("change", show);
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) { input.files = event.dataTransfer.files; show(); }
  });

  form.addEventListener("submit", (event) => {
    if (!input.files.length) return;
    event.preventDefault();
    refusal.hidden = true;
    send.disabled = true;
    progress.hidden = false;
    const bar = progress.querySelector("i");
    const said = progress.querySelector("[data-progress-words]");
    const began = performance.now();
    const request = new XMLHttpRequest();
    request.open("POST", form.action || location.href);
    request.setRequestHeader("X-Requested-With", "fetch");
    request.upload.addEventListener("progress", (step) => {
      const seconds = (performance.now() - began) / 1000;
      const rate = step.loaded / Math.max(seconds, 0.001);
      bar.style.width = `${(step.loaded / step.total) * 100}%`;
      const left = (step.total - step.loaded) / Math.max(rate, 1);
      said.textContent = step.loaded < step.total
        ? `${words(step.loaded)} of ${words(step.total)} · ${words(rate)}/s · ${Math.ceil(left)} s left` : "Stored; asking for validation…";
    });
    const refuse = (message) => {
      refusal.textContent = message;
      refusal.hidden = false;
      refusal.scrollIntoView({ block: "nearest" });
      progress.hidden = true;
      send.disabled = false;
    };
    request.addEventListener("load", () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* an error page: said below */ }
      if (request.status < 300 && answer.address) { location.href = answer.address; return; }
      const places = (answer.errors || []).map((each) => each.msg).filter((text) => text !== answer.detail);
      refuse([answer.detail || `The upload was refused (${request.status}).`, ...places].join(" "));
    });
    request.addEventListener("error", () => refuse("The connection broke. Nothing was stored; what you typed is still here."));
    request.send(new FormData(form));
  });
}

for (const form of document.querySelectorAll("form[data-upload]")) bind(form);
