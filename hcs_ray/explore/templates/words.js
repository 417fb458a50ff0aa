// Text, as lines or as terms with what is said of them; never markup.
export function render({ model }) {
  const box = document.createElement("div");
  box.className = "said";
  if (model.polite) box.setAttribute("aria-live", "polite");

  function draw() {
    box.replaceChildren();
    if (model.text) {
      const line = document.createElement("p");
      line.textContent = model.text;
      box.append(line);
    }
    if (!model.facts.length) return;
    const list = document.createElement("dl");
    for (const [term, said] of model.facts) {
      const name = document.createElement("dt");
      name.textContent = term;
      const value = document.createElement("dd");
      value.textContent = said;
      list.append(name, value);
    }
    box.append(list);
  }

  model.on("text", draw);
  model.on("facts", draw);
  draw();
  return box;
}
