// Draws the formulas as MathML, which browsers lay out themselves: no style sheet, no fonts.
for (const place of document.querySelectorAll(".arithmatex")) {
  const display = place.tagName === "DIV";
  const formula = place.textContent.trim().slice(2, -2); // without \( \) or \[ \]
  katex.render(formula, place, { displayMode: display, output: "mathml", throwOnError: false });
}

// What scrolls sideways can be scrolled with the keyboard, too.
for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
  box.tabIndex = 0;
}
