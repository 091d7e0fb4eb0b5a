// From stored values to grey levels. The format (inference/runtime/viewing.py): a four-byte little-endian header length,
// a JSON header, then raw little-endian values, after the modality LUT. The window functions are DICOM PS3.3 C.11.2.1.2.

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };

export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const values = new ARRAYS[header.dtype](buffer.slice(4 + length));
  if (values.length !== header.rows * header.columns * header.channels) throw new Error("the picture is not whole");
  return { ...header, values };
}

// The ways in which the file itself asks to be shown, best first. A look-up table is {table: true} with the window that
// a drag continues from.
export function presets(frame) {
  const found = [];
  if (frame.voi_lut) {
    const { first, entries } = frame.voi_lut;
    found.push({ label: "Look-up table of the file", table: true, center: first + entries.length / 2, width: entries.length, function: "LINEAR" });
  }
  (frame.windows || []).forEach((window, index) => found.push({ label: `Window ${index + 1} of the file`, ...window, table: false }));
  found.push({ label: "Full range", table: false, ...fullRange(frame) });
  return found;
}

function fullRange(frame) {
  if (frame.dtype === "uint8") return { center: 128, width: 256, function: "LINEAR" };
  if (frame.dtype === "float32") return { center: (frame.low + frame.high) / 2, width: Math.max(frame.high - frame.low, 1e-6), function: "LINEAR_EXACT" };
  return { center: (frame.low + frame.high + 1) / 2, width: frame.high - frame.low + 1, function: "LINEAR" };
}

// A function from a stored value to 0..255.
export function curve(frame, window) {
  const flip = frame.invert !== Boolean(window.inverted);
  const turn = (grey) => (flip ? 255 - grey : grey);
  if (window.table) {
    const { first, bits, entries } = frame.voi_lut;
    const top = 2 ** bits - 1;
    return (value) => turn((entries[Math.min(Math.max(Math.round(value) - first, 0), entries.length - 1)] / top) * 255);
  }
  const { center, width } = window;
  if (window.function === "SIGMOID") return (value) => turn(255 / (1 + Math.exp((-4 * (value - center)) / width)));
  if (window.function === "LINEAR_EXACT") {
    return (value) => turn(Math.min(Math.max((value - center) / width + 0.5, 0), 1) * 255);
  }
  if (width <= 1) return (value) => turn(value <= center - 0.5 ? 0 : 255);
  return (value) => turn(Math.min(Math.max((value - (center - 0.5)) / (width - 1) + 0.5, 0), 1) * 255);
}

const grey = (level) => Math.floor(Math.min(Math.max(level, 0), 255) + 0.5);

// Writes the frame as RGBA into `image` (an ImageData of its size). Integers go through a table, once for each value.
export function paint(frame, window, image) {
  const { values, channels } = frame;
  const level = curve(frame, window);
  const out = new Uint32Array(image.data.buffer);
  if (channels === 1 && frame.dtype === "float32") {
    for (let at = 0; at < values.length; at += 1) { const y = grey(level(values[at])); out[at] = 0xff000000 | (y << 16) | (y << 8) | y; }
    return;
  }
  const base = frame.dtype === "int16" ? 32768 : 0;
  const table = new Uint8Array(frame.dtype === "uint8" ? 256 : 65536);
  for (let at = 0; at < table.length; at += 1) table[at] = grey(level(at - base));
  if (channels === 1) {
    for (let at = 0; at < values.length; at += 1) { const y = table[values[at] + base]; out[at] = 0xff000000 | (y << 16) | (y << 8) | y; }
    return;
  }
  for (let at = 0, from = 0; at < out.length; at += 1, from += 3) {
    out[at] = 0xff000000 | (table[values[from + 2] + base] << 16) | (table[values[from + 1] + base] << 8) | table[values[from] + base];
  }
}

// A canvas of the frame's own size, shown as the file asks.
export function draw(frame, window = presets(frame)[0]) {
  const canvas = document.createElement("canvas");
  canvas.width = frame.columns;
  canvas.height = frame.rows;
  const image = new ImageData(frame.columns, frame.rows);
  paint(frame, window, image);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
