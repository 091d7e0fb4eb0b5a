// Blacks out text that is burned into a picture: rectangles drawn on it, in pixels of the upright picture. The server
// burns them into the stored pixels before anything is kept; here they are only drawn.

const STRIP = 0.08;

export class Blackout {
  // `dialog` holds the canvas and the buttons; one instance serves every picture of the page.
  constructor(dialog) {
    this.dialog = dialog;
    this.canvas = dialog.querySelector("canvas");
    this.count = dialog.querySelector("[data-count]");
    const on = (name, act) => dialog.querySelector(`[data-${name}]`).addEventListener("click", act);
    on("top", () => this.add([0, 0, this.width, Math.ceil(this.height * STRIP)]));
    on("bottom", () => this.add([0, this.height - Math.ceil(this.height * STRIP), this.width, Math.ceil(this.height * STRIP)]));
    on("undo", () => { this.rectangles.pop(); this.draw(); });
    on("clear", () => { this.rectangles.length = 0; this.draw(); });
    this.bind();
  }

  // Resolves with the rectangles [[x, y, width, height]] when the dialog is closed; as they were when it was left by Esc.
  edit(image, rectangles) {
    this.image = image;
    [this.width, this.height] = [image.width, image.height];
    this.rectangles = rectangles.map((each) => [...each]);
    this.dialog.returnValue = "";
    this.dialog.showModal();
    this.draw();
    return new Promise((resolve) => {
      this.dialog.addEventListener("close", () => resolve(this.dialog.returnValue === "keep" ? this.rectangles : rectangles), { once: true });
    });
  }

  add(rectangle) {
    this.rectangles.push(rectangle);
    this.draw();
  }

  bind() {
    let from = null;
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const within = (part, whole) => Math.min(Math.max(part, 0), whole);
      return [
        within(Math.round(((event.clientX - box.left) / box.width) * this.width), this.width),
        within(Math.round(((event.clientY - box.top) / box.height) * this.height), this.height),
      ];
    };
    const between = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.abs(a - c), Math.abs(b - d)];
    this.canvas.addEventListener("pointerdown", (event) => { from = at(event); this.canvas.setPointerCapture(event.pointerId); });
    this.canvas.addEventListener("pointermove", (event) => { if (from) this.draw(between(from, at(event))); });
    this.canvas.addEventListener("pointerup", (event) => {
      if (!from) return;
      const drawn = between(from, at(event));
      from = null;
      if (drawn[2] > 1 && drawn[3] > 1) this.add(drawn); else this.draw();
    });
    this.canvas.addEventListener("pointercancel", () => { from = null; this.draw(); });
  }

  draw(growing = null) {
    this.canvas.width = this.width;
    this.canvas.height = this.height;
    const context = this.canvas.getContext("2d");
    context.drawImage(this.image, 0, 0);
    context.fillStyle = "#000";
    context.strokeStyle = "#7d9bf5";
    context.lineWidth = Math.max(1, this.width / 400);
    for (const rectangle of growing ? [...this.rectangles, growing] : this.rectangles) {
      context.fillRect(...rectangle);
      context.strokeRect(...rectangle);
    }
    const count = this.rectangles.length;
    this.count.textContent = count === 0 ? "Nothing is blacked out." : count === 1 ? "One area is blacked out." : `${count} areas are blacked out.`;
  }
}
