// One picture to zoom and pan: the wheel zooms at the pointer, dragging pans, a double click fits.
const MOST = 40;

export function render({ model }) {
  const box = document.createElement("div");
  box.className = "stage";
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  const bar = document.createElement("div");
  bar.className = "bar";
  const zoom = document.createElement("output");
  const value = document.createElement("output");
  value.className = "value";
  let image = null, scale = 1, left = 0, top = 0, fitted = true, asked = 0;

  const fitScale = () =>
    image ? Math.min(canvas.width / image.naturalWidth, canvas.height / image.naturalHeight) : 1;

  function fit() {
    fitted = true;
    scale = fitScale();
    left = (canvas.width - image.naturalWidth * scale) / 2;
    top = (canvas.height - image.naturalHeight * scale) / 2;
    draw();
  }

  function zoomTo(next, x = canvas.width / 2, y = canvas.height / 2) {
    if (!image) return;
    next = Math.min(MOST, Math.max(fitScale() / 2, next));
    left = x - ((x - left) * next) / scale;
    top = y - ((y - top) * next) / scale;
    scale = next;
    fitted = false;
    draw();
  }

  function draw() {
    const paper = canvas.getContext("2d");
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, canvas.width, canvas.height);
    if (!image) return;
    paper.imageSmoothingEnabled = scale < 1;
    paper.imageSmoothingQuality = "high";
    paper.drawImage(image, left, top, image.naturalWidth * scale, image.naturalHeight * scale);
    zoom.textContent = `${Math.round(scale * 100)} %`;
  }

  function empty(words) {
    asked += 1;
    image = null;
    box.classList.remove("loading");
    delete canvas.dataset.shown;
    zoom.textContent = "";
    value.textContent = words;
    draw();
  }

  // The picture of another field must not stand for this one while it is read.
  function turn() {
    canvas.setAttribute("aria-label", model.alt);
    empty(model.field ? "Reading …" : "");
  }

  function load() {
    if (!model.src) return;
    const number = ++asked;
    box.classList.add("loading");
    const next = new Image();
    next.onload = () => {
      if (number !== asked) return;
      const same = image && next.naturalWidth === image.naturalWidth;
      image = next;
      box.classList.remove("loading");
      value.textContent = "";
      if (same && !fitted) draw();
      else fit();
      canvas.dataset.shown = model.src;
    };
    next.onerror = () => { if (number === asked) empty("This picture cannot be had."); };
    next.src = model.src;
  }

  async function tellValue(event) {
    if (!image || !model.values) return;
    const width = image.naturalWidth / model.panels;
    const x = Math.floor((event.offsetX * devicePixelRatio - left) / scale);
    const y = Math.floor((event.offsetY * devicePixelRatio - top) / scale);
    if (x < 0 || y < 0 || x >= image.naturalWidth || y >= image.naturalHeight) {
      value.textContent = "";
      return;
    }
    const values = model.values;
    const answer = await fetch(`${values}&x=${x % width}&y=${y}`);
    if (answer.ok && values === model.values) value.textContent = (await answer.json()).text;
  }

  let waiting = null;
  function soonTellValue(event) {
    clearTimeout(waiting);
    waiting = setTimeout(() => tellValue(event), 60);
  }

  function button(label, title, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    made.title = title;
    made.addEventListener("click", () => image && action());
    return made;
  }

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const ratio = devicePixelRatio;
    zoomTo(scale * Math.exp(-event.deltaY / 400), event.offsetX * ratio, event.offsetY * ratio);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) return soonTellValue(event);
    left += event.movementX * devicePixelRatio;
    top += event.movementY * devicePixelRatio;
    fitted = false;
    draw();
  });
  canvas.addEventListener("dblclick", () => image && fit());
  new ResizeObserver(() => {
    const { width, height } = canvas.getBoundingClientRect();
    if (!width) return;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    if (image && fitted) fit();
    else draw();
  }).observe(canvas);

  bar.append(
    button("Fit", "The whole field (double click)", fit),
    button("1:1", "One pixel of the camera on one of the screen", () => zoomTo(1)),
    button("−", "Smaller", () => zoomTo(scale / 1.5)),
    button("+", "Larger, down to single pixels (wheel)", () => zoomTo(scale * 1.5)),
    zoom,
    value,
  );
  box.append(canvas, bar);
  model.on("field", turn);
  model.on("alt", turn);
  model.on("src", load);
  turn();
  load();
  return box;
}
