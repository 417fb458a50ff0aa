"use strict";
// As the reader's system has it, unless the switch was used; where nothing may be stored it is not remembered.
const THEME = "hcs-ray-theme";
function storedTheme(value) {
  try {
    if (value !== undefined) localStorage.setItem(THEME, value);
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}
const remembered = storedTheme();
if (remembered === "light" || remembered === "dark") document.documentElement.dataset.theme = remembered;
