// The canvas: a picture to draw on, with brushes for colour and for the mask, zoom and pan, by mouse, touch, pen and keys.
// components/canvas.py places it; the drawing itself and its undo are canvas_document.js's.
(() => {
  const { PictureDocument, drafts } = window.atelier;
  const ZOOM_STEP = 1.25;
  const MAX_SCALE = 32;
  const MARGIN = 8;
  const DRAFT_REST_MS = 600;

  // Paths of 20x20 signs, drawn with strokes.
  const SIGNS = {
    hand: "M10 2v16M2 10h16M10 2l-2.5 2.5M10 2l2.5 2.5M10 18l-2.5-2.5M10 18l2.5-2.5M2 10l2.5-2.5M2 10l2.5 2.5M18 10l-2.5-2.5M18 10l-2.5 2.5",
    mask: "M3 17c3 0 5-1 5-4l7.5-9.5a1.5 1.5 0 0 1 2 2L9.5 13",
    paint: "M10 3c3 4 5 6.5 5 9a5 5 0 0 1-10 0c0-2.5 2-5 5-9zM7.5 12.5A2.5 2.5 0 0 0 10 15",
    eraser: "M7 17h10M3.5 12.5l8-8a1.5 1.5 0 0 1 2 0l3 3a1.5 1.5 0 0 1 0 2L9 17H7.5l-4-3a1 1 0 0 1 0-1.5zM8 8l5 5",
    undo: "M7 4L3 8l4 4M3 8h8a5 5 0 0 1 0 9H8",
    redo: "M13 4l4 4-4 4M17 8H9a5 5 0 0 0 0 9h3",
    invert: "M10 3a7 7 0 1 0 0 14a7 7 0 0 0 0-14zM10 3v14M10 6h4.5M10 9h6.5M10 12h6.5M10 15h4",
    clear: "M4 6h12M8 6V4h4v2M6 6l1 11h6l1-11M9 9v5M11 9v5",
    menu: "M3 5h14v10H3zM7 15V5M12 8l2 2-2 2",
    out: "M5 10h10",
    in: "M5 10h10M10 5v10",
    full: "M3 8V3h5M12 3h5v5M17 12v5h-5M8 17H3v-5",
    remove: "M5 5l10 10M15 5L5 15",
  };

  const made = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const isTyped = (target) =>
    target instanceof HTMLElement &&
    (target.isContentEditable || target.matches("textarea, select, input:not([type=range], [type=color], [type=file])"));

  class Canvas {
    // `brushes` are those on offer ("mask", "paint"), `words` the invitation.
    constructor(id, { brushes, words, blank }, upload) {
      Object.assign(this, { id, brushes, words, blank, upload });
      this.document = null;
      this.stamp = null;
      this.tool = brushes[0] === "mask" ? "mask" : "hand";
      this.brush = { size: 40, softness: 0, colour: "#c9603d" };
      this.opacity = 0.6;
      this.view = { scale: 1, x: 0, y: 0 };
      this.isFitted = true;
      this.growth = [0, 0, 0, 0];
      this.pointers = new Map();
      this.sent = {};
      this.waiting = Promise.resolve();
      this.build();
      this.listen();
      this.after(() => this.restore());
    }

    // Steps that wait for files come one after the other; one that fails says so and the next goes on.
    after(step) {
      this.waiting = this.waiting.then(step).catch((error) => this.say(String(error?.message ?? error)));
      return this.waiting;
    }

    // ---- what it consists of

    build() {
      this.surface = made("canvas", { tabIndex: 0, className: "canvas-surface" });
      this.surface.setAttribute("role", "application");
      this.context = this.surface.getContext("2d");
      this.cursor = made("div", { className: "canvas-cursor", hidden: true });
      this.chooser = made("input", { type: "file", accept: "image/*", hidden: true });
      this.chooser.onchange = () => this.take(this.chooser);
      const choose = made("button", { type: "button", className: "canvas-choose", textContent: this.words });
      choose.onclick = () => this.chooser.click();
      this.invitation = made("div", { className: "canvas-invitation" }, choose);
      if (this.blank) {
        const blank = made("button", { type: "button", className: "canvas-blank", textContent: "Begin with an empty canvas" });
        blank.onclick = () => this.after(() => this.openBlank());
        this.invitation.append(blank);
      }
      this.note = made("p", { className: "canvas-note" });
      this.note.setAttribute("role", "status");
      this.stage = made("div", { className: "canvas-stage" }, this.surface, this.cursor, this.invitation, this.note);
      this.root = made("div", { className: "canvas" }, this.chooser, this.stage, this.buildBars());
      this.describe();
    }

    buildBars() {
      const tools = [this.toolButton("hand", "Move the picture (H, or hold Space)")];
      if (this.brushes.includes("mask")) tools.push(this.toolButton("mask", "Mask brush: what is covered changes (B)"));
      if (this.brushes.includes("paint")) tools.push(this.toolButton("paint", `Colour brush (${this.key("paint")})`));
      tools.push(this.toolButton("eraser", "Eraser (E)"));
      this.undoButton = this.button("undo", "Undo (Ctrl+Z)", () => this.step("undo"));
      this.redoButton = this.button("redo", "Redo (Ctrl+Shift+Z)", () => this.step("redo"));
      this.percent = made("button", { type: "button", className: "canvas-percent", title: "Fit the whole picture (0)" });
      this.percent.onclick = () => this.fit();
      const zoom = [
        this.button("out", "Smaller (-)", () => this.zoomBy(1 / ZOOM_STEP)),
        this.percent,
        this.button("in", "Larger (+)", () => this.zoomBy(ZOOM_STEP)),
        this.button("full", "Full screen (F)", () => this.toggleFullScreen()),
        this.button("remove", "Remove the picture", () => this.after(() => this.close())),
      ];
      const mask = this.brushes.includes("mask") ? this.buildMaskTools() : [];
      const clear = this.button("clear", "Clear what is drawn", () => this.edit(() => this.document.clear()));
      const group = (...parts) => made("div", { className: "canvas-group" }, ...parts);
      return made(
        "div",
        { className: "canvas-bars" },
        group(...tools),
        group(this.undoButton, this.redoButton, clear, ...mask),
        group(...zoom),
        this.buildBrushSettings(),
      );
    }

    buildMaskTools() {
      const upload = made("input", { type: "file", accept: "image/*", hidden: true, className: "canvas-mask-file" });
      upload.onchange = () => this.takeMask(upload);
      const item = (words, act) => {
        const entry = made("button", { type: "button", textContent: words });
        entry.onclick = () => {
          this.menu.open = false;
          act();
        };
        return entry;
      };
      const opacity = this.slider("Mask visibility", 10, 100, this.opacity * 100, (value) => {
        this.opacity = value / 100;
        this.draw();
      });
      const sign = made("summary", { title: "More for the mask", innerHTML: sign_of("menu") });
      sign.setAttribute("aria-label", "More for the mask");
      this.menu = made(
        "details",
        { className: "canvas-menu" },
        sign,
        made(
          "div",
          { className: "canvas-menu-list" },
          item("Mask what is transparent", () => this.edit(() => this.maskFromTransparency())),
          item("Upload a mask (white changes)", () => upload.click()),
          opacity.label,
        ),
        upload,
      );
      return [this.button("invert", "Invert the mask (I)", () => this.edit(() => this.document.invertMask())), this.menu];
    }

    buildBrushSettings() {
      this.sizeSlider = this.slider("Size", 1, 200, this.brush.size, (value) => this.setSize(value));
      this.sizeSlider.label.title = "Size of the brush in pixels of the picture ([ and ])";
      this.softnessSlider = this.slider("Softness", 0, 100, 0, (value) => {
        this.brush.softness = value / 100;
        this.keepDraftSoon();
      });
      this.colour = made("input", { type: "color", value: this.brush.colour, title: "Colour of the brush" });
      this.colour.setAttribute("aria-label", "Colour of the brush");
      this.colour.oninput = () => {
        this.brush.colour = this.colour.value;
        this.choose("paint");
      };
      const parts = [this.sizeSlider.label, this.softnessSlider.label];
      if (this.brushes.includes("paint")) parts.unshift(this.colour);
      return made("div", { className: "canvas-group canvas-brush" }, ...parts);
    }

    button(sign, words, act) {
      const made_button = made("button", { type: "button", title: words, innerHTML: sign_of(sign), className: `canvas-${sign}` });
      made_button.setAttribute("aria-label", words);
      made_button.onclick = act;
      return made_button;
    }

    toolButton(tool, words) {
      const button = this.button(tool, words, () => this.choose(tool));
      button.dataset.tool = tool;
      return button;
    }

    slider(words, low, high, value, act) {
      const input = made("input", { type: "range", min: low, max: high, value });
      input.oninput = () => act(Number(input.value));
      return { input, label: made("label", {}, made("span", { textContent: words }), input) };
    }

    key(tool) {
      return tool === "paint" && this.brushes.includes("mask") ? "P" : "B";
    }

    // ---- pictures in and out

    async open(blob, name, uploaded = null) {
      let bitmap;
      try {
        bitmap = await createImageBitmap(blob);
      } catch {
        throw new Error(`${name || "The file"} is not a picture that this browser can show; use a PNG, JPEG or WebP file.`);
      }
      this.document = new PictureDocument(bitmap, blob, name, uploaded);
      this.sent = {};
      const short = Math.min(bitmap.width, bitmap.height);
      this.sizeSlider.input.max = Math.max(16, Math.round(short / 2));
      this.setSize(Math.max(4, Math.round(short / 10)));
      this.say("");
      this.describe(); // first, for the stage is larger with a picture
      this.fit();
    }

    async openNew(blob, name) {
      await this.open(blob, name);
      this.keepDraftSoon();
    }

    async openBlank() {
      const [width, height] = this.blank.map((side) => Number(document.querySelector(`${side} input`)?.value) || 512);
      const paper = made("canvas", { width, height });
      const context = paper.getContext("2d");
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, height);
      await this.openNew(await new Promise((resolve) => paper.toBlob(resolve, "image/png")), "canvas.png");
      this.choose("paint");
    }

    async close() {
      this.document = null;
      this.describe();
      this.draw();
      await drafts.remove(this.id);
    }

    take(input) {
      const [file] = input.files;
      input.value = "";
      if (file) this.after(() => this.openNew(file, file.name));
    }

    takeMask(input) {
      const [file] = input.files;
      input.value = "";
      if (!file || !this.document) return;
      this.after(async () => {
        const bitmap = await createImageBitmap(file);
        this.edit(() => this.document.maskFrom(bitmap));
      });
    }

    maskFromTransparency() {
      if (!this.document.maskFromTransparency()) this.say("Nothing in this picture is transparent.");
    }

    // What the server sends: a picture, which replaces the one here, or a mask for it, or both.
    receive(value) {
      this.after(async () => {
        if (!value?.stamp || value.stamp === this.stamp) return;
        const { picture, mask, stamp } = value;
        if (picture) await this.open(await fetched(picture.url), picture.orig_name ?? "picture.png", picture);
        this.stamp = stamp;
        if (mask && this.document) {
          const bitmap = await createImageBitmap(await fetched(mask.url));
          this.edit(() => this.document.maskFrom(bitmap));
        }
        this.keepDraftSoon();
      });
    }

    // What the server is given: the picture and the layers as uploads, or null where there is no picture.
    async value() {
      await this.waiting;
      if (!this.document) return null;
      const { document: drawn } = this;
      drawn.uploaded ??= await this.send(drawn.blob, drawn.name);
      if (this.sent.revision !== drawn.revision) {
        const layers = {};
        for (const layer of this.brushes) {
          const png = await drawn.png(layer);
          layers[layer] = png && (await this.send(png, `${layer}.png`));
        }
        this.sent = { revision: drawn.revision, layers };
      }
      return { picture: drawn.uploaded, ...this.sent.layers };
    }

    async send(blob, name) {
      const { path, url } = await this.upload(new File([blob], name || "picture.png", { type: blob.type }));
      return { path, url, orig_name: name, meta: { _type: "gradio.FileData" } };
    }

    keepDraftSoon() {
      this.root.dataset.kept = "no";
      clearTimeout(this.draftTimer);
      this.draftTimer = setTimeout(() => this.after(() => this.keepDraft()), DRAFT_REST_MS);
    }

    async keepDraft() {
      if (!this.document) return;
      const { blob, name } = this.document;
      const layers = {};
      for (const layer of this.brushes) layers[layer] = await this.document.png(layer);
      const { stamp, tool, brush } = this;
      await drafts.write(this.id, { blob, name, layers, stamp, tool, brush: { ...brush } });
      this.root.dataset.kept = "yes";
    }

    async restore() {
      const draft = await drafts.read(this.id);
      if (!draft) return;
      this.stamp = draft.stamp;
      await this.open(draft.blob, draft.name);
      for (const layer of this.brushes) {
        if (draft.layers[layer]) this.document.context(layer).drawImage(await createImageBitmap(draft.layers[layer]), 0, 0);
      }
      this.brush = draft.brush;
      this.setSize(draft.brush.size);
      this.softnessSlider.input.value = draft.brush.softness * 100;
      this.colour.value = draft.brush.colour;
      this.choose(draft.tool);
      this.root.dataset.kept = "yes";
    }

    // ---- showing

    choose(tool) {
      this.tool = tool;
      this.describe();
    }

    setSize(size) {
      this.brush.size = Math.round(Math.min(Math.max(size, 1), Number(this.sizeSlider.input.max)));
      this.sizeSlider.input.value = this.brush.size;
      this.moveCursor();
      if (this.document) this.keepDraftSoon();
    }

    say(sentence) {
      this.note.textContent = sentence;
    }

    describe() {
      this.root.dataset.state = this.document ? "drawing" : "empty";
      this.root.dataset.tool = this.tool;
      for (const button of this.root.querySelectorAll("[data-tool]")) {
        button.setAttribute("aria-pressed", String(button.dataset.tool === this.tool));
      }
      this.undoButton.disabled = !this.document?.done.length;
      this.redoButton.disabled = !this.document?.undone.length;
      const size = this.document ? `, ${this.document.width} by ${this.document.height} pixels` : "";
      this.surface.setAttribute("aria-label", `Picture to draw on${size}`);
      this.moveCursor();
    }

    fit() {
      if (!this.document) return;
      const [left, top, right, bottom] = this.growth;
      const [width, height] = [this.document.width + left + right, this.document.height + top + bottom];
      const room = [this.stage.clientWidth - 2 * MARGIN, this.stage.clientHeight - 2 * MARGIN];
      const scale = Math.min(room[0] / width, room[1] / height);
      this.isFitted = true;
      if (!(scale > 0)) return; // in a tab that is not open; it is fitted when that has a size
      this.view = {
        scale,
        x: (this.stage.clientWidth - width * scale) / 2 + left * scale,
        y: (this.stage.clientHeight - height * scale) / 2 + top * scale,
      };
      this.draw();
    }

    // Zooms by `factor` about a point of the stage, which stays where it is.
    zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
      if (!this.document) return;
      const scale = Math.min(Math.max(this.view.scale * factor, 0.02), MAX_SCALE);
      const ratio = scale / this.view.scale;
      this.view = { scale, x: x - (x - this.view.x) * ratio, y: y - (y - this.view.y) * ratio };
      this.isFitted = false;
      this.draw();
    }

    pan(x, y) {
      this.view.x += x;
      this.view.y += y;
      this.isFitted = false;
      this.draw();
    }

    draw() {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.drawNow());
    }

    drawNow() {
      const { context, surface, view } = this;
      const ratio = window.devicePixelRatio;
      const size = [this.stage.clientWidth, this.stage.clientHeight].map((side) => Math.round(side * ratio));
      if (surface.width !== size[0] || surface.height !== size[1]) [surface.width, surface.height] = size;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, ...size);
      if (!this.document) return;
      const { bitmap, width, height } = this.document;
      const scale = view.scale * ratio;
      this.percent.textContent = `${Math.round(view.scale * 100)}%`;
      context.setTransform(scale, 0, 0, scale, view.x * ratio, view.y * ratio);
      context.imageSmoothingEnabled = scale < 2;
      context.imageSmoothingQuality = "high";
      this.drawGrowth();
      context.fillStyle = checks(context);
      context.fillRect(0, 0, width, height);
      context.drawImage(bitmap, 0, 0);
      for (const layer of ["paint", "mask"]) {
        context.globalAlpha = layer === "mask" ? this.opacity : 1;
        const drawn = this.document.canvas(layer);
        if (drawn) context.drawImage(drawn, 0, 0);
      }
      context.globalAlpha = 1;
      this.moveCursor();
    }

    // What outpainting adds, as a dashed frame.
    drawGrowth() {
      const [left, top, right, bottom] = this.growth;
      if (!(left || top || right || bottom)) return;
      const { context } = this;
      context.setLineDash([6, 4].map((length) => length / this.view.scale));
      context.lineWidth = 1.5 / this.view.scale;
      context.strokeStyle = getComputedStyle(this.root).color;
      const { width, height } = this.document;
      context.strokeRect(-left, -top, width + left + right, height + top + bottom);
      context.setLineDash([]);
    }

    grow(growth) {
      this.growth = growth;
      if (this.isFitted) this.fit();
      else this.draw();
    }

    moveCursor() {
      const draws = this.document && this.hover && this.tool !== "hand" && this.action?.kind !== "pan";
      this.cursor.hidden = !draws;
      if (!draws) return;
      const size = Math.max(3, this.brush.size * this.view.scale);
      this.cursor.style.width = this.cursor.style.height = `${size}px`;
      this.cursor.style.transform = `translate(${this.hover.x - size / 2}px, ${this.hover.y - size / 2}px)`;
    }

    // ---- drawing

    edit(act) {
      if (!this.document) return;
      this.say("");
      act();
      this.describe();
      this.draw();
      this.keepDraftSoon();
    }

    step(direction) {
      this.edit(() => this.document[direction]());
    }

    listen() {
      const { surface, stage } = this;
      surface.addEventListener("pointerdown", (event) => this.press(event));
      surface.addEventListener("pointermove", (event) => this.move(event));
      for (const kind of ["pointerup", "pointercancel"]) surface.addEventListener(kind, (event) => this.release(event));
      surface.addEventListener("pointerleave", () => {
        this.hover = null;
        this.moveCursor();
      });
      surface.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      stage.addEventListener("dragover", (event) => event.preventDefault());
      stage.addEventListener("drop", (event) => this.drop(event));
      new ResizeObserver(() => (this.isFitted ? this.fit() : this.draw())).observe(stage);
      document.addEventListener("keydown", (event) => this.pressKey(event));
      document.addEventListener("keyup", (event) => {
        if (event.code === "Space") this.root.classList.remove("is-panning");
      });
      document.addEventListener("paste", (event) => this.paste(event));
      document.addEventListener("visibilitychange", () => {
        if (document.hidden && this.root.dataset.kept === "no") this.after(() => this.keepDraft());
      });
      document.addEventListener("click", (event) => {
        if (this.menu && !this.menu.contains(event.target)) this.menu.open = false;
      });
    }

    place(event) {
      const box = this.surface.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    }

    // Where on the picture an event is, with the brush's size there; a pen's pressure makes it smaller.
    spot(event) {
      const { x, y } = this.place(event);
      const pressure = event.pointerType === "pen" && event.pressure > 0 ? 0.25 + 0.75 * event.pressure : 1;
      const { scale } = this.view;
      return { x: (x - this.view.x) / scale, y: (y - this.view.y) / scale, size: this.brush.size * pressure };
    }

    press(event) {
      if (!this.document) return;
      this.surface.setPointerCapture(event.pointerId);
      this.surface.focus({ preventScroll: true });
      this.pointers.set(event.pointerId, this.place(event));
      if (this.pointers.size === 2) {
        this.document.cancel();
        this.action = { kind: "pinch", ...this.fingers() };
        this.draw();
        return;
      }
      const panning = this.tool === "hand" || event.button === 1 || this.root.classList.contains("is-panning");
      if (panning && event.button < 2) {
        event.preventDefault();
        this.action = { kind: "pan", from: this.place(event) };
      } else if (event.button === 0 || event.button === 5) {
        const tool = event.button === 5 ? "eraser" : this.tool;
        const spot = this.spot(event);
        this.action = { kind: "stroke", tool, last: spot };
        this.document.begin();
        this.document.stroke(tool, spot, spot, this.brush.colour, this.brush.softness);
        this.draw();
      }
      this.moveCursor();
    }

    move(event) {
      this.hover = event.pointerType === "touch" ? null : this.place(event);
      this.moveCursor();
      if (!this.pointers.has(event.pointerId) || !this.action) return;
      this.pointers.set(event.pointerId, this.place(event));
      const { action } = this;
      if (action.kind === "pinch") {
        this.pinch();
      } else if (action.kind === "pan") {
        const at = this.place(event);
        this.pan(at.x - action.from.x, at.y - action.from.y);
        action.from = at;
      } else {
        const points = event.getCoalescedEvents?.() ?? [];
        for (const point of points.length ? points : [event]) {
          const spot = this.spot(point);
          this.document.stroke(action.tool, action.last, spot, this.brush.colour, this.brush.softness);
          action.last = spot;
        }
        this.draw();
      }
    }

    fingers() {
      const [one, two] = [...this.pointers.values()];
      return { x: (one.x + two.x) / 2, y: (one.y + two.y) / 2, apart: Math.hypot(one.x - two.x, one.y - two.y) };
    }

    pinch() {
      if (this.pointers.size < 2) return;
      const now = this.fingers();
      this.pan(now.x - this.action.x, now.y - this.action.y);
      this.zoomBy(now.apart / Math.max(1, this.action.apart), now.x, now.y);
      this.action = { kind: "pinch", ...now };
    }

    release(event) {
      this.pointers.delete(event.pointerId);
      if (this.pointers.size) return;
      const wasStroke = this.action?.kind === "stroke";
      this.action = null;
      if (wasStroke) this.edit(() => (event.type === "pointercancel" ? this.document.cancel() : this.document.commit()));
    }

    // The wheel zooms with Ctrl, or while the canvas has the focus; a page that is being scrolled past it goes on.
    wheel(event) {
      const focused = document.activeElement === this.surface;
      if (!this.document || !(event.ctrlKey || event.metaKey || focused)) return;
      if (!event.ctrlKey && this.isFitted && event.deltaY > 0) return;
      event.preventDefault();
      const { x, y } = this.place(event);
      this.zoomBy(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) / 400), x, y);
    }

    drop(event) {
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      const url = event.dataTransfer.getData("text/uri-list").split("\n")[0];
      if (file) this.after(() => this.openNew(file, file.name));
      else if (url) this.after(async () => this.openNew(await fetched(url), url.split("/").pop()));
    }

    get isMeant() {
      if (this.root.offsetParent === null && document.fullscreenElement !== this.root) return false;
      return Boolean(this.hover) || this.root.contains(document.activeElement);
    }

    paste(event) {
      const file = [...(event.clipboardData?.files ?? [])].find((found) => found.type.startsWith("image/"));
      if (!file || isTyped(event.target) || this.root.offsetParent === null) return;
      event.preventDefault();
      this.after(() => this.openNew(file, file.name));
    }

    pressKey(event) {
      if (!this.document || !this.isMeant || isTyped(event.target) || event.altKey) return;
      const act = event.ctrlKey || event.metaKey ? this.commandFor(event) : this.actFor(event);
      if (!act) return;
      event.preventDefault();
      act();
    }

    commandFor(event) {
      const key = event.key.toLowerCase();
      if (key === "z") return () => this.step(event.shiftKey ? "redo" : "undo");
      return key === "y" ? () => this.step("redo") : null;
    }

    actFor(event) {
      const brush = this.brush.size;
      const acts = {
        "[": () => this.setSize(Math.min(brush - 1, brush / 1.15)),
        "]": () => this.setSize(Math.max(brush + 1, brush * 1.15)),
        "+": () => this.zoomBy(ZOOM_STEP),
        "=": () => this.zoomBy(ZOOM_STEP),
        "-": () => this.zoomBy(1 / ZOOM_STEP),
        0: () => this.fit(),
        " ": () => this.root.classList.add("is-panning"),
        h: () => this.choose("hand"),
        e: () => this.choose("eraser"),
        b: () => this.choose(this.brushes[0]),
        f: () => this.toggleFullScreen(),
      };
      if (this.brushes.includes("mask")) acts.i = () => this.edit(() => this.document.invertMask());
      if (this.brushes.includes("paint")) acts.p = () => this.choose("paint");
      return acts[event.key.toLowerCase()];
    }

    toggleFullScreen() {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.root.requestFullscreen();
    }
  }

  const sign_of = (name) => `<svg viewBox="0 0 20 20" aria-hidden="true"><path d="${SIGNS[name]}"/></svg>`;

  const fetched = async (url) => {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`The picture could not be fetched from the server (${answer.status}).`);
    return answer.blob();
  };

  let checked = null;
  const checks = (context) => {
    if (!checked) {
      const tile = Object.assign(document.createElement("canvas"), { width: 16, height: 16 });
      const paint = tile.getContext("2d");
      paint.fillStyle = "#d8d8d8";
      paint.fillRect(0, 0, 16, 16);
      paint.fillStyle = "#f2f2f2";
      paint.fillRect(0, 0, 8, 8);
      paint.fillRect(8, 8, 8, 8);
      checked = context.createPattern(tile, "repeat");
    }
    return checked;
  };

  const canvases = new Map();

  // Gradio may build a tab's elements anew; what was drawn stays with its id.
  window.atelier.mountCanvas = (element, props, upload, watch) => {
    const holder = element.querySelector("[data-canvas]");
    const { id, options } = JSON.parse(holder.dataset.canvas);
    if (!canvases.has(id)) canvases.set(id, new Canvas(id, options, upload));
    const canvas = canvases.get(id);
    canvas.upload = upload;
    holder.replaceChildren(canvas.root);
    canvas.receive(props.value);
    watch("value", () => canvas.receive(props.value));
  };

  // The values of an event with what is drawn now in the place of the canvas's own value.
  window.atelier.withCanvas = async (id, place, values) => {
    const drawn = canvases.has(id) ? await canvases.get(id).value() : null;
    return values.map((value, index) => (index === place ? drawn : value));
  };

  const inEights = (length, round = Math.round) => Math.max(8, round(length / 8) * 8);

  // The size of the picture as the form takes it; `otherwise` where there is none.
  window.atelier.canvasSize = (id, otherwise) => {
    const picture = canvases.get(id)?.document;
    return picture ? [inEights(picture.width), inEights(picture.height)] : otherwise;
  };

  // Shows a frame of what outpainting adds on the left, at the top, on the right and at the bottom.
  window.atelier.growCanvas = (id, growth) => canvases.get(id)?.grow(growth.map((side) => Number(side) || 0));

  // The four sides of outpainting and the size, with `add` added to the sides, or none outpainted where it is null.
  window.atelier.outpaintBy = (id, add, [left, top, right, bottom, width, height]) => {
    const sides = [left, top, right, bottom].map((side, place) => (add ? (Number(side) || 0) + add[place] : 0));
    const picture = canvases.get(id)?.document;
    if (!picture) return [...sides, width, height];
    // A picture that grows does so to the next multiple of 8, as core/requests.py's grown_size says.
    const round = sides.some((side) => side > 0) ? Math.ceil : Math.round;
    const grown = [picture.width + sides[0] + sides[2], picture.height + sides[1] + sides[3]];
    return [...sides, ...grown.map((length) => inEights(length, round))];
  };
})();
