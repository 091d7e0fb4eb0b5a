export const BROKEN = "The connection broke.";

// Sends one file with its progress. Resolves with {status, answer, signedOut}; rejects when the connection broke.
export function post(address, body, token, progress = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.setRequestHeader("X-Requested-With", "fetch");
    request.setRequestHeader("X-CSRFToken", token);
    request.upload.addEventListener("progress", (step) => step.lengthComputable && progress(step.loaded, step.total));
    request.addEventListener("load", () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* not ours: said by its status */ }
      resolve({ status: request.status, answer, signedOut: request.responseURL.includes("/accounts/login/") });
    });
    request.addEventListener("error", () => reject(new Error(BROKEN)));
    request.send(body);
  });
}

// Signing in again changes the token: a fresh one stands in a fresh copy of the page. "" while signed out.
export async function freshToken(address) {
  const answer = await fetch(address, { headers: { "X-Requested-With": "fetch" } });
  if (!answer.ok || answer.redirected) return "";
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  return page.querySelector("[data-new] [name=csrfmiddlewaretoken]")?.value || "";
}
