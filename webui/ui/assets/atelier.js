// What only the browser can do: keys, remembering the form, crisp small pictures, copying parameters.
(() => {
  const restored = new Set();

  // On a phone the tabs are wider than the window.
  const keepOpenTabInSight = () => requestAnimationFrame(() => {
    const open = document.querySelector("#tabs [role='tab'][aria-selected='true']");
    open?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });

  window.atelier = {
    // Until a form's old values are back, changes come from the page being built and are not worth keeping.
    formToSave(tab, names, memory, values) {
      if (!restored.has(tab)) return memory;
      return Object.fromEntries(names.map((name, index) => [name, values[index]]));
    },
    formIsRestored(tab) {
      restored.add(tab);
    },
    tabToSave(memory, id) {
      return restored.has("tabs") ? id : memory;
    },
    tabIsRestored() {
      restored.add("tabs");
      keepOpenTabInSight();
    },
    // The line below the section More: which of its fields differ from the defaults, and to what.
    whatDiffers(labels, defaults, values) {
      const shown = (value) => (typeof value === "boolean" ? (value ? "on" : "off") : String(value ?? ""));
      const item = (label, value) => {
        const made = document.createElement("span");
        made.textContent = `${label.replace(/ \(.*/, "")} ${shown(value)}`;
        return made.outerHTML;
      };
      const differs = (index) => (values[index] ?? null) !== defaults[index];
      return labels.flatMap((label, index) => (differs(index) ? [item(label, values[index])] : [])).join("");
    },
  };

  const visible = (selector) => [...document.querySelectorAll(selector)].find((found) => found.offsetParent !== null);

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const button = visible("button.generate");
      if (button) {
        event.preventDefault();
        button.click();
      }
    } else if (event.key === "Enter" && event.altKey) {
      visible(".live[data-state='running']") && visible("button.skip")?.click();
    } else if (event.key === "Escape" && visible(".live[data-state='running']")) {
      visible("button.stopping")?.click();
    }
  });

  // The built-in model's pictures are 128 pixels wide: enlarge them with hard edges instead of a blur.
  document.addEventListener(
    "load",
    (event) => {
      const image = event.target;
      if (image instanceof HTMLImageElement && !image.classList.contains("preview")) {
        image.classList.toggle("small-picture", image.naturalWidth > 0 && Math.max(image.naturalWidth, image.naturalHeight) <= 320);
      }
    },
    true,
  );

  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without https the clipboard is out of reach, except through a selected text field.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".copy-infotext");
    if (!button) return;
    await copy(button.dataset.infotext);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
})();
