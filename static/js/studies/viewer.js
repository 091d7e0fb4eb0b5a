// One picture on black: window and level, zoom, pan, invert, an overlay. It knows pixels and a stage, no page.
import { paint, presets } from "./pixels.js";

const ZOOM_MOST = 20;

export class Viewer extends EventTarget {
  // `canvas` fills its parent. Fires "view" after each change of what is shown.
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.source = document.createElement("canvas");
    this.frame = null;
    this.overlay = null;
    this.opacity = 0;
    this.instead = null;
    this.pending = false;
    new ResizeObserver(() => this.changed()).observe(canvas);
  }

  show(frame) {
    this.frame = frame;
    this.overlay = null;
    this.instead = null;
    this.source.width = frame.columns;
    this.source.height = frame.rows;
    this.image = new ImageData(frame.columns, frame.rows);
    this.reset();
  }

  // As the file asks to be opened.
  reset() {
    this.instead = null;
    this.zoom = 1;
    this.x = 0;
    this.y = 0;
    this.setWindow({ ...presets(this.frame)[0], inverted: false });
  }

  setWindow(window) {
    this.window = { ...this.window, ...window };
    paint(this.frame, this.window, this.image);
    this.source.getContext("2d").putImageData(this.image, 0, 0);
    this.changed();
  }

  invert() { this.setWindow({ inverted: !this.window.inverted }); }

  // `wider` and `brighter` are in pixels of a drag; the whole range of values is 600 of them.
  dragWindow(wider, brighter) {
    if (!this.frame) return;
    const step = (this.frame.dtype === "uint8" ? 255 : Math.max(this.frame.high - this.frame.low, 1e-6)) / 600;
    const least = this.frame.dtype === "float32" ? step : 1;
    const { center, width } = this.window;
    this.setWindow({ table: false, width: Math.max(width + wider * step, least), center: center - brighter * step });
  }

  // About a point of the canvas in CSS pixels; its middle without one.
  zoomBy(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const before = this.zoom;
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), ZOOM_MOST);
    const ratio = this.zoom / before;
    const [left, top] = [x - this.canvas.clientWidth / 2, y - this.canvas.clientHeight / 2];
    this.x = left - (left - this.x) * ratio;
    this.y = top - (top - this.y) * ratio;
    this.panBy(0, 0);
  }

  // The picture never leaves the stage.
  panBy(x, y) {
    const { width, height } = this.size();
    const across = Math.max(0, (width - this.canvas.clientWidth) / 2);
    const down = Math.max(0, (height - this.canvas.clientHeight) / 2);
    this.x = Math.min(Math.max(this.x + x, -across), across);
    this.y = Math.min(Math.max(this.y + y, -down), down);
    this.changed();
  }

  // An image with transparency over the whole picture, at 0 to 1.
  lay(overlay, opacity) {
    this.overlay = overlay;
    this.opacity = opacity;
    this.changed();
  }

  // Another image in the picture's place, None to show the picture again.
  showInstead(image) {
    this.instead = image;
    this.changed();
  }

  // The picture as it lies on the canvas, in CSS pixels.
  size() {
    const shown = this.instead || this.source;
    const fit = Math.min(this.canvas.clientWidth / shown.width, this.canvas.clientHeight / shown.height);
    return { width: shown.width * fit * this.zoom, height: shown.height * fit * this.zoom, scale: fit * this.zoom };
  }

  changed() {
    if (!this.frame || this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.redraw(); });
  }

  redraw() {
    const { canvas, context } = this;
    const dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * dense);
    canvas.height = Math.round(canvas.clientHeight * dense);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const { width, height, scale } = this.size();
    const left = (canvas.clientWidth - width) / 2 + this.x;
    const top = (canvas.clientHeight - height) / 2 + this.y;
    const place = [left * dense, top * dense, width * dense, height * dense];
    context.imageSmoothingQuality = "high";
    // What the model saw is small: its pixels are shown as they are.
    context.imageSmoothingEnabled = !this.instead && scale * dense < 6;
    context.drawImage(this.instead || this.source, ...place);
    if (this.overlay && this.opacity > 0 && !this.instead) {
      context.imageSmoothingEnabled = true;
      context.globalAlpha = this.opacity;
      context.drawImage(this.overlay, ...place);
      context.globalAlpha = 1;
    }
    this.dispatchEvent(new Event("view"));
  }
}
