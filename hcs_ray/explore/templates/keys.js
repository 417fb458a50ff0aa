// Keys of the whole page, but for those typed into a field of a form.
const OURS = new Set(["g", "b", "u", "c", "z", "f", "ArrowLeft", "ArrowRight", "Escape"]);
const TYPING = new Set(["INPUT", "TEXTAREA", "SELECT"]);
const NOT_TYPED = new Set(["checkbox", "radio", "color"]); // they keep the focus after a click

export function render({ model }) {
  const help = document.getElementById("help");
  function pressed(event) {
    const target = event.composedPath()[0];
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (TYPING.has(target.tagName) && !NOT_TYPED.has(target.type)) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (event.key === "?") {
      help.showModal();
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!OURS.has(key)) return;
    event.preventDefault();
    if (event.repeat && !key.startsWith("Arrow")) return; // a key that is held decides once
    model.send_msg({ key, shift: event.shiftKey });
  }
  document.addEventListener("keydown", pressed);
  model.on("remove", () => document.removeEventListener("keydown", pressed));
  return document.createElement("span");
}
