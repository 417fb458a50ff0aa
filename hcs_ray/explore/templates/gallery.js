// Thumbnails of fields. A click picks one, a double click opens it; pictures come over HTTP as they get ready.
const MARKS = { good: "✓", bad: "✕", unsure: "?" };

export function render({ model }) {
  const list = document.createElement("div");
  list.className = "cards";
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", model.label);
  const cards = new Map();

  function card(item) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = item.title;
    button.dataset.key = item.key;
    const picture = document.createElement("span");
    picture.className = "picture";
    const image = document.createElement("img");
    image.alt = item.title;
    image.draggable = false;
    image.addEventListener("load", () => picture.classList.add("ready"));
    image.src = `thumb/${item.row}.jpg?v=${model.version}`;
    const badge = document.createElement("span");
    badge.className = "badge";
    picture.append(image, badge);
    const lines = item.lines.map((text, number) => {
      const line = document.createElement("span");
      line.className = number ? "line soft" : "line";
      line.textContent = text;
      return line;
    });
    button.append(picture, ...lines);
    button.addEventListener("click", () => model.send_msg({ kind: "pick", row: item.row }));
    button.addEventListener("dblclick", () => model.send_msg({ kind: "open", row: item.row }));
    cards.set(item.row, { button, badge });
    return button;
  }

  function drawLabels() {
    for (const [row, { button, badge }] of cards) {
      const [verdict, ...tags] = model.labels[row] ?? [""];
      badge.className = `badge ${verdict}${verdict || tags.length ? "" : " none"}`;
      badge.textContent = [MARKS[verdict] ?? "", tags.length ? "#" : ""].join("");
      badge.title = [verdict, ...tags].filter(Boolean).join(", ");
      button.dataset.verdict = verdict;
    }
  }

  function drawCurrent() {
    for (const [row, { button }] of cards) {
      const here = row === model.current;
      button.classList.toggle("current", here);
      button.setAttribute("aria-current", here ? "true" : "false");
      if (here && model.follow) button.scrollIntoView({ block: "nearest" });
    }
  }

  function draw() {
    const waiting = model.items === null;
    list.style.minHeight = waiting ? `${list.offsetHeight}px` : ""; // what is below stays in its place
    cards.clear();
    list.replaceChildren(...(model.items ?? []).map(card));
    if (!cards.size) {
      const none = document.createElement("p");
      none.className = "none";
      none.textContent = waiting ? "Reading …" : model.empty;
      list.append(none);
    }
    drawLabels();
    drawCurrent();
  }

  model.on("items", draw);
  model.on("labels", drawLabels);
  model.on("current", drawCurrent);
  draw();
  return list;
}
