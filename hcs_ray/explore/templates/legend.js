// What the colours of the map mean. A click on a category selects its fields.
const SHAPES = { o: "M6 1a5 5 0 1 0 .01 0Z", "^": "M6 1 11 11H1Z", s: "M1.5 1.5h9v9h-9Z", D: "M6 0 12 6 6 12 0 6Z" };

function symbol(entry) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 12 12");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[entry.mark]);
  path.setAttribute("fill", entry.colour);
  svg.append(path);
  return svg;
}

export function render({ model }) {
  const box = document.createElement("div");
  box.className = "colours";

  function text(className, content) {
    const part = document.createElement("span");
    part.className = className;
    part.textContent = content;
    return part;
  }

  function category(entry, number) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = `Select the ${entry.fields.toLocaleString("en")} fields of ${entry.name}`;
    button.append(symbol(entry), text("name", entry.name), text("count", entry.fields.toLocaleString("en")));
    button.addEventListener("click", () => model.send_msg({ kind: "category", number }));
    return button;
  }

  function scale({ low, high, colours, unknown }) {
    const ramp = document.createElement("span");
    ramp.className = "ramp";
    ramp.style.background = `linear-gradient(90deg, ${colours.join(",")})`;
    const row = document.createElement("div");
    row.className = "scale";
    row.append(text("", low), ramp, text("", high));
    const parts = [row];
    if (unknown) parts.push(text("soft", `grey: not known (${unknown})`));
    return parts;
  }

  function draw() {
    box.setAttribute("aria-label", `Legend: ${model.title}`);
    const parts = model.scale.colours ? scale(model.scale) : model.entries.map(category).reverse();
    box.replaceChildren(text("title", model.title), ...parts);
  }

  model.on("entries", draw);
  model.on("scale", draw);
  model.on("title", draw);
  draw();
  return box;
}
