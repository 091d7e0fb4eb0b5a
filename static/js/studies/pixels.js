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

// The ways in which the file itself asks to be shown, best first, and all of its values last. A look-up table is
// {table: true} with the window that a drag continues from.
export function presets(frame) {
  const found = [];
  if (frame.voi_lut) {
    const { first, entries } = frame.voi_lut;
    found.push({ label: "Look-up table", table: true, center: first + entries.length / 2, width: entries.length, function: "LINEAR" });
  }
  const windows = frame.windows || [];
  windows.forEach((window, index) => found.push({ label: windows.length > 1 ? `Window ${index + 1}` : "As opened", ...window, table: false }));
  const all = { label: "Full range", ...fullRange(frame), table: false };
  if (!windows.some((window) => window.center === all.center && window.width === all.width)) found.push(all);
  return found;
}

function fullRange(frame) {
  const [low, high] = frame.dtype === "uint8" ? [0, 255] : [frame.low, frame.high];
  const width = high > low ? high - low : 1;
  return { center: low + width / 2, width, function: "LINEAR_EXACT" };
}

// A function from a stored value to 0..255, before inversion; what lies outside is clamped where it is stored.
function curve(frame, window) {
  if (window.table) {
    const { first, bits, entries } = frame.voi_lut;
    const top = 2 ** bits - 1;
    return (value) => (entries[Math.min(Math.max(Math.round(value) - first, 0), entries.length - 1)] / top) * 255;
  }
  const { center, width } = window;
  if (window.function === "SIGMOID") return (value) => 255 / (1 + Math.exp((-4 * (value - center)) / width));
  if (window.function === "LINEAR_EXACT") return (value) => ((value - center) / width + 0.5) * 255;
  if (width <= 1) return (value) => (value > center - 0.5 ? 255 : 0);
  return (value) => ((value - (center - 0.5)) / (width - 1) + 0.5) * 255;
}

const opaque = (red, green, blue) => 0xff000000 | (blue << 16) | (green << 8) | red;

// Writes the frame as RGBA into `image` (an ImageData of its size). Integers go through a table, once for each value.
// A clamped array rounds halves to even, as the server does.
export function paint(frame, window, image) {
  const { values, channels } = frame;
  const level = curve(frame, window);
  const flip = frame.invert !== Boolean(window.inverted) ? 255 : 0;
  const out = new Uint32Array(image.data.buffer);
  if (frame.dtype === "float32") {
    const grey = new Uint8ClampedArray(1);
    for (let at = 0; at < values.length; at += 1) {
      grey[0] = level(values[at]);
      const y = grey[0] ^ flip;
      out[at] = opaque(y, y, y);
    }
    return;
  }
  const base = frame.dtype === "int16" ? 32768 : 0;
  const table = new Uint8ClampedArray(frame.dtype === "uint8" ? 256 : 65536);
  for (let at = 0; at < table.length; at += 1) table[at] = level(at - base);
  for (let at = 0; flip && at < table.length; at += 1) table[at] ^= flip;
  if (channels === 1) {
    for (let at = 0; at < values.length; at += 1) { const y = table[values[at] + base]; out[at] = opaque(y, y, y); }
    return;
  }
  for (let at = 0, from = 0; at < out.length; at += 1, from += 3) {
    out[at] = opaque(table[values[from] + base], table[values[from + 1] + base], table[values[from + 2] + base]);
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
