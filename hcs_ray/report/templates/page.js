// Comfort only: without scripts everything can be read.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, column, head));
  }
}
function sortBy(table, column, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
  const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * compare(a, b));
  table.tBodies[0].append(...rows);
}
const dialog = document.querySelector("dialog");
for (const zoom of document.querySelectorAll(".zoom")) {
  zoom.addEventListener("click", () => {
    const picture = zoom.querySelector("img");
    dialog.querySelector("img").src = picture.src;
    dialog.querySelector("img").alt = picture.alt;
    dialog.querySelector("p").textContent = picture.alt;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
const map = document.querySelector(".map");
for (const key of document.querySelectorAll(".keys button")) {
  key.addEventListener("click", () => {
    key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") !== "true");
    const picked = [...document.querySelectorAll('.keys button[aria-pressed="true"]')].map((k) => k.value);
    map.classList.toggle("picked", picked.length > 0);
    for (const group of map.querySelectorAll("g[data-group]")) {
      for (const point of group.children) point.classList.toggle("pick", picked.includes(group.dataset.group));
    }
  });
}
const theme = document.querySelector(".theme");
const system = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen === undefined ? system.matches : chosen === "dark";
}
function nameTheme() {
  theme.textContent = isDark() ? "Light colours" : "Dark colours";
}
theme.addEventListener("click", () => {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  storedTheme(next);
  nameTheme();
});
system.addEventListener("change", nameTheme);
nameTheme();
theme.hidden = false;
