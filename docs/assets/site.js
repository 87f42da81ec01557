// Formulas, by KaTeX, which only pages that have some load.
const formulas = document.querySelectorAll(".arithmatex");
if (formulas.length > 0) {
  const folder = new URL("katex/", document.currentScript.src);
  const style = Object.assign(document.createElement("link"), { rel: "stylesheet" });
  style.href = new URL("katex.min.css", folder);
  const script = document.createElement("script");
  script.src = new URL("katex.min.js", folder);
  script.onload = () => {
    for (const place of formulas) {
      const source = place.textContent.trim().slice(2, -2); // without \( \) or \[ \]
      katex.render(source, place, { displayMode: place.tagName === "DIV", throwOnError: false });
    }
  };
  document.head.append(style, script);
}

// Short cells, figures above all, keep to one line, and long ones have room; a table that is too
// wide scrolls.
for (const cell of document.querySelectorAll(".md-typeset table:not([class])  td")) {
  if (cell.textContent.length <= 20) cell.style.whiteSpace = "nowrap";
  else if (cell.textContent.length > 40) cell.style.minWidth = "11rem";
}

// What the theme leaves without a name, and what scrolls sideways, also with the keyboard. The
// theme adds parts of a page after it has loaded.
const content = document.querySelector(".md-content");
const wide = ".md-typeset__scrollwrap, .md-typeset pre > code, .katex-display";
function complete() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  content.querySelectorAll(".md-code__nav").forEach((buttons, number) => {
    buttons.setAttribute("aria-label", `Code block ${number + 1}`);
  });
  for (const box of content.querySelectorAll(wide)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
if (content !== null) {
  new MutationObserver(complete).observe(content, { childList: true, subtree: true });
  window.addEventListener("resize", complete);
  window.addEventListener("load", complete);
}
