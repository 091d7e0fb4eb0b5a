// Starts Swagger UI on the documents that the page names; the bar on top switches between them.
const setup = JSON.parse(document.getElementById("setup").textContent);

function cookie(name) {
  const found = document.cookie.split("; ").find((pair) => pair.startsWith(`${name}=`));
  return found ? decodeURIComponent(found.slice(name.length + 1)) : "";
}

window.SwaggerUIBundle({
  dom_id: "#docs",
  urls: setup.urls,
  "urls.primaryName": setup.primary,
  layout: "StandaloneLayout",
  presets: [window.SwaggerUIBundle.presets.apis, window.SwaggerUIStandalonePreset],
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    // A signed-in person may try the control API out; a call with a key needs no token.
    if (!["GET", "HEAD", "OPTIONS"].includes(request.method) && !request.headers.Authorization) {
      request.headers["X-CSRFToken"] = cookie(setup.csrfCookie);
    }
    return request;
  },
});
