// A picture and what is drawn over it: a layer of paint and a layer of mask, with undo, and drafts that outlive the page.
// Knows nothing of the page around it; canvas.js shows and steers it.
(() => {
  const TILE = 256;
  const HISTORY_BYTES = 192 * 2 ** 20;
  const MASK_COLOUR = "#e0526e";
  const LAYERS = ["paint", "mask"];

  class PictureDocument {
    // `blob` is the picture's file, `bitmap` what it shows; `uploaded` is Gradio's record of the file once it has it.
    constructor(bitmap, blob, name, uploaded = null) {
      Object.assign(this, { bitmap, blob, name, uploaded, width: bitmap.width, height: bitmap.height });
      this.contexts = { paint: null, mask: null };
      this.revision = 0;
      this.done = [];
      this.undone = [];
      this.step = null;
    }

    // The layer's 2D context; made when it is first needed, for pictures may be large.
    context(layer) {
      if (!this.contexts[layer]) {
        const canvas = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
        this.contexts[layer] = canvas.getContext("2d", { willReadFrequently: true });
      }
      return this.contexts[layer];
    }

    canvas(layer) {
      return this.contexts[layer]?.canvas ?? null;
    }

    // ---- history: a step holds the tiles it touched as they were, so that undoing is putting them back exactly

    begin() {
      this.step = new Map();
    }

    touch(layer, left, top, right, bottom) {
      const context = this.context(layer);
      const first = (edge) => Math.max(0, Math.floor(edge / TILE)) * TILE;
      for (let y = first(top); y < Math.min(bottom, this.height); y += TILE) {
        for (let x = first(left); x < Math.min(right, this.width); x += TILE) {
          const key = `${layer} ${x} ${y}`;
          if (this.step.has(key)) continue;
          const size = [Math.min(TILE, this.width - x), Math.min(TILE, this.height - y)];
          this.step.set(key, { layer, x, y, image: context.getImageData(x, y, ...size) });
        }
      }
    }

    commit() {
      if (this.step?.size) {
        this.done.push([...this.step.values()]);
        this.undone = [];
        this.forgetOldest();
        this.revision += 1;
      }
      this.step = null;
    }

    cancel() {
      if (this.step) this.swap([...this.step.values()]);
      this.step = null;
    }

    undo() {
      this.move(this.done, this.undone);
    }

    redo() {
      this.move(this.undone, this.done);
    }

    move(from, to) {
      const tiles = from.pop();
      if (!tiles) return;
      this.swap(tiles);
      to.push(tiles);
      this.revision += 1;
    }

    swap(tiles) {
      for (const tile of tiles) {
        const context = this.context(tile.layer);
        const now = context.getImageData(tile.x, tile.y, tile.image.width, tile.image.height);
        context.putImageData(tile.image, tile.x, tile.y);
        tile.image = now;
      }
    }

    forgetOldest() {
      const bytes = (tiles) => tiles.reduce((sum, tile) => sum + tile.image.data.length, 0);
      let held = this.done.reduce((sum, tiles) => sum + bytes(tiles), 0);
      while (held > HISTORY_BYTES && this.done.length > 1) held -= bytes(this.done.shift());
    }

    // ---- drawing: `from` and `to` are {x, y, size} in pixels of the picture; `softness` is from 0 to 1

    stroke(tool, from, to, colour, softness) {
      const layers = tool === "eraser" ? LAYERS.filter((layer) => this.contexts[layer]) : [tool];
      const reach = Math.max(from.size, to.size) / 2 + 2;
      const [left, right] = [Math.min(from.x, to.x) - reach, Math.max(from.x, to.x) + reach];
      const [top, bottom] = [Math.min(from.y, to.y) - reach, Math.max(from.y, to.y) + reach];
      for (const layer of layers) {
        this.touch(layer, left, top, right, bottom);
        const context = this.context(layer);
        context.save();
        if (tool === "eraser") context.globalCompositeOperation = "destination-out";
        const paint = layer === "mask" ? MASK_COLOUR : colour;
        if (softness > 0) stamp(context, from, to, paint, softness);
        else line(context, from, to, paint);
        context.restore();
      }
    }

    // One step that may change a whole layer.
    change(layers, alter) {
      this.begin();
      for (const layer of layers) {
        this.touch(layer, 0, 0, this.width, this.height);
        const context = this.context(layer);
        context.save();
        alter(context);
        context.restore();
      }
      this.commit();
    }

    clear() {
      const drawn = LAYERS.filter((layer) => !this.isBlank(layer));
      if (drawn.length) this.change(drawn, (context) => context.clearRect(0, 0, this.width, this.height));
    }

    invertMask() {
      this.change(["mask"], (context) => {
        context.globalCompositeOperation = "source-out";
        context.fillStyle = MASK_COLOUR;
        context.fillRect(0, 0, this.width, this.height);
      });
    }

    // White of `bitmap` becomes the mask; where it is transparent, nothing is masked.
    maskFrom(bitmap) {
      this.setMask(this.pixelsOf(bitmap, "#000"), (data, at) =>
        Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]),
      );
    }

    // Masks what is transparent in the picture; false where nothing is.
    maskFromTransparency() {
      const pixels = this.pixelsOf(this.bitmap);
      if (!pixels.data.some((level, at) => at % 4 === 3 && level < 255)) return false;
      this.setMask(pixels, (data, at) => 255 - data[at + 3]);
      return true;
    }

    pixelsOf(bitmap, background = "") {
      const canvas = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      if (background) {
        context.fillStyle = background;
        context.fillRect(0, 0, this.width, this.height);
      }
      context.drawImage(bitmap, 0, 0, this.width, this.height);
      return context.getImageData(0, 0, this.width, this.height);
    }

    setMask(pixels, levelAt) {
      const rgb = [1, 3, 5].map((at) => parseInt(MASK_COLOUR.slice(at, at + 2), 16));
      const { data } = pixels;
      for (let at = 0; at < data.length; at += 4) {
        data[at + 3] = levelAt(data, at);
        [data[at], data[at + 1], data[at + 2]] = rgb;
      }
      this.change(["mask"], (context) => context.putImageData(pixels, 0, 0));
    }

    isBlank(layer) {
      const context = this.contexts[layer];
      if (!context) return true;
      return !new Uint32Array(context.getImageData(0, 0, this.width, this.height).data.buffer).some((pixel) => pixel);
    }

    // The layer as a PNG, null where nothing is drawn on it.
    async png(layer) {
      if (this.isBlank(layer)) return null;
      return new Promise((resolve) => this.canvas(layer).toBlob(resolve, "image/png"));
    }
  }

  const line = (context, from, to, colour) => {
    context.strokeStyle = context.fillStyle = colour;
    context.lineCap = "round";
    context.lineWidth = to.size;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    // A line without length has no ends in every browser.
    context.beginPath();
    context.arc(to.x, to.y, to.size / 2, 0, 2 * Math.PI);
    context.fill();
  };

  // Discs with a soft rim along the way. Where about OVERLAP of them lie on each other, their rims add up to a slope.
  const OVERLAP = 5;
  const stamp = (context, from, to, colour, softness) => {
    const length = Math.hypot(to.x - from.x, to.y - from.y);
    const count = Math.max(1, Math.ceil(length / Math.max(1, to.size / 10)));
    const power = length > 0 ? 1 / OVERLAP : 1;
    for (let index = 1; index <= count; index += 1) {
      const share = index / count;
      const at = (side) => from[side] + (to[side] - from[side]) * share;
      const [x, y, radius] = [at("x"), at("y"), at("size") / 2];
      const rim = context.createRadialGradient(x, y, radius * (1 - softness), x, y, radius);
      for (let stop = 0; stop <= 5; stop += 1) {
        const alpha = Math.round(255 * (1 - (stop / 5) ** power));
        rim.addColorStop(stop / 5, colour + alpha.toString(16).padStart(2, "0"));
      }
      context.fillStyle = rim;
      context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
  };

  // ---- drafts, in the browser's database: pictures are too large for its other memory

  const database = () =>
    new Promise((resolve, reject) => {
      const opening = indexedDB.open("atelier", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("drafts");
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    });

  const inDrafts = async (mode, act) => {
    const opened = await database();
    try {
      return await new Promise((resolve, reject) => {
        const transaction = opened.transaction("drafts", mode);
        const request = act(transaction.objectStore("drafts"));
        transaction.oncomplete = () => resolve(request.result);
        transaction.onabort = transaction.onerror = () => reject(transaction.error);
      });
    } finally {
      opened.close();
    }
  };

  window.atelier.PictureDocument = PictureDocument;
  window.atelier.drafts = {
    read: (key) => inDrafts("readonly", (store) => store.get(key)),
    write: (key, draft) => inDrafts("readwrite", (store) => store.put(draft, key)),
    remove: (key) => inDrafts("readwrite", (store) => store.delete(key)),
  };
})();
