// How hands move a viewer. Mouse: drag is window and level, with Shift or another button it pans, the wheel zooms.
// Touch: one finger pans once the picture is larger than its stage (else the page scrolls), two fingers pinch to zoom,
// or, moved side by side, change window and level.

const DECIDED_PX = 8;

export function bindGestures(viewer) {
  const { canvas } = viewer;
  bindMouse(viewer, canvas);
  bindTouch(viewer, canvas);
}

function bindMouse(viewer, canvas) {
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") return;
    from = { x: event.clientX, y: event.clientY, pans: event.button !== 0 || event.shiftKey };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    if (from.pans) viewer.panBy(x, y); else viewer.dragWindow(x, -y);
    from = { ...from, x: event.clientX, y: event.clientY };
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { from = null; });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    viewer.zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
}

function bindTouch(viewer, canvas) {
  let last = null;
  const read = (event) => {
    const box = canvas.getBoundingClientRect();
    const points = [...event.touches].slice(0, 2).map((touch) => ({ x: touch.clientX - box.left, y: touch.clientY - box.top }));
    const [a, b = a] = points;
    return { fingers: points.length, x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  canvas.addEventListener("touchstart", (event) => {
    last = { ...read(event), act: "" };
    last.began = { ...last };
    if (last.fingers === 2) event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("touchmove", (event) => {
    if (!last) return;
    const now = read(event);
    if (now.fingers !== last.fingers || (now.fingers === 1 && viewer.zoom <= 1)) return;
    event.preventDefault();
    let { act } = last;
    if (now.fingers === 1) {
      viewer.panBy(now.x - last.x, now.y - last.y);
    } else {
      if (!act) {
        const spread = Math.abs(now.apart - last.began.apart);
        const moved = Math.hypot(now.x - last.began.x, now.y - last.began.y);
        if (Math.max(spread, moved) > DECIDED_PX) act = spread > moved ? "zoom" : "window";
      }
      if (act === "zoom") {
        viewer.zoomBy(now.apart / Math.max(last.apart, 1), now.x, now.y);
        viewer.panBy(now.x - last.x, now.y - last.y);
      }
      if (act === "window") viewer.dragWindow(now.x - last.x, last.y - now.y);
    }
    last = { ...now, act, began: last.began };
  }, { passive: false });
  for (const kind of ["touchend", "touchcancel"]) {
    canvas.addEventListener(kind, (event) => {
      last = event.touches.length ? { ...read(event), act: "" } : null;
      if (last) last.began = { ...last };
    });
  }
}
