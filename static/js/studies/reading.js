// A chosen file as an image to look at, before it is sent. PNG and JPEG are read here; a DICOM file is asked of the
// server, which answers with its pixels and keeps nothing.
import { decode, draw } from "./pixels.js";

export const HEIC = "This is a HEIC picture, which no browser or model here reads. "
  + "Set the camera to “Most Compatible”, or export it as JPEG, and choose it again.";

const starts = (bytes, ...signature) => signature.every((byte, index) => bytes[index] === byte);

export async function kindOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 132).arrayBuffer());
  const text = (from, to) => String.fromCharCode(...bytes.slice(from, to));
  if (starts(bytes, 0x89, 0x50, 0x4e, 0x47)) return "png";
  if (starts(bytes, 0xff, 0xd8)) return "jpeg";
  if (text(4, 8) === "ftyp" && /^(hei[cmsx]|hev[cx]|mif1|msf1)/.test(text(8, 12))) return "heic";
  return "other";
}

// An image (canvas or bitmap) with `width` and `height` in pixels of the upright picture. Throws an Error whose message
// is for the person.
export async function read(file, { preview, token }) {
  const kind = await kindOf(file);
  if (kind === "heic") throw new Error(HEIC);
  if (kind === "png" || kind === "jpeg") {
    try { return await createImageBitmap(file); } catch { throw new Error("This picture cannot be read: the file may be damaged. Export it again."); }
  }
  const body = new FormData();
  body.append("file", file);
  const answer = await fetch(preview, { method: "POST", body, headers: { "X-Requested-With": "fetch", "X-CSRFToken": token } });
  if (answer.redirected) throw new Error("Your session has ended. Sign in again, then choose the file once more.");
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.detail || `The file was refused (${answer.status}).`);
  }
  return draw(decode(await answer.arrayBuffer()));
}

// A small canvas of it, for the list.
export function thumbnail(image, canvas, rectangles = []) {
  const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
  const [width, height] = [image.width * scale, image.height * scale];
  const [left, top] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, width, height);
  for (const [x, y, w, h] of rectangles) {
    context.fillRect(left + x * scale, top + y * scale, w * scale, h * scale);
    context.strokeStyle = "#7d9bf5";
    context.strokeRect(left + x * scale, top + y * scale, w * scale, h * scale);
  }
}
