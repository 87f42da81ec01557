// A card for each sample: what is shown of it, its labels, and the choice of a mark.

const SHORT_TEXT = 280; // characters
const SHORT_ROW = 6; // columns
const noun = report.noun; // images, texts or samples
const one = noun.replace(/s$/, "");

/** The card of a sample, without its mark. */
function makeCard(sample) {
  const given = report.shownNames[sample.given];
  const refined = report.shownNames[sample.refined];
  return element(
    "article",
    {
      class: "card",
      tabindex: -1,
      "data-id": sample.id,
      "aria-label": `Sample ${sample.id}: given ${given}, refined ${refined}`,
      "aria-keyshortcuts": sample.image === null ? "1 2 3 4 0" : "1 2 3 4 0 Enter",
    },
    ...content(sample, given, refined),
    ...details(sample),
  );
}

/** Labels and figures of a sample, its path, and the choice of a mark. */
function details(sample) {
  const label = (kind, name, probability) =>
    element(
      "div",
      { class: `label ${kind}` },
      element("dt", {}, kind),
      element("dd", { class: "name" }, element("bdi", {}, name)),
      element("dd", { class: "probability" }, percent(probability)),
    );
  const fact = (name, value) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value));
  const target = sample.proposal;
  const next = sample.refined === sample.given && target !== null;
  const rows = [
    label("given", report.shownNames[sample.given], sample.givenProbability),
    next
      ? label("next", report.shownNames[target], sample.others[0][1])
      : label("refined", report.shownNames[sample.refined], sample.refinedProbability),
  ];
  // Where no other class was predicted, there is nothing to fix the label to.
  const buttons = MARKS.filter((mark) => mark !== "fix" || target !== null).map((mark) => {
    const text = mark === "fix" && next ? report.shownNames[target] : mark;
    const key = MARKS.indexOf(mark) + 1;
    const title = text === mark ? `${mark} (key ${key})` : `fix: ${text} (key ${key})`;
    return element("button", { type: "button", tabindex: -1, "data-mark": mark, title }, text);
  });
  const changes = `changes in ${report.changeEpochs === 1 ? "the last epoch" : `the last ${report.changeEpochs} epochs`}`;
  return [
    element("dl", { class: "labels" }, ...rows),
    element(
      "dl",
      { class: "details" },
      fact("score", sample.score === null ? "–" : sample.score.toFixed(3)),
      ...(sample.changes === null ? [] : [fact(changes, String(sample.changes))]),
      fact("id", String(sample.id)),
    ),
    ...(sample.path === "" ? [] : [path(sample)]),
    element(
      "div",
      { class: "choice", role: "group", "aria-label": `Mark of sample ${sample.id}` },
      ...buttons,
      // Of two classes, the buttons offer both.
      ...(report.names.length > (target === null ? 1 : 2) ? [otherClass(sample)] : []),
    ),
  ];
}

/** The path of a sample, a link to its image if that has an address. */
function path(sample) {
  const text = element("bdi", {}, sample.shownPath);
  const link = { href: sample.address, target: "_blank", rel: "noopener", tabindex: -1 };
  return element(
    "p",
    { class: "path", title: sample.shownPath },
    sample.address === "" ? text : element("a", link, text),
  );
}

/** What is shown of a sample: its picture, its text, its row of a table. */
function content(sample, given, refined) {
  const parts = [];
  if (sample.image !== null || sample.problem !== "") {
    parts.push(picture(sample, given, refined));
  }
  if (sample.text !== null) {
    const long = sample.text.length > SHORT_TEXT;
    // Not in the middle of a word, if it has an end.
    const short = sample.text.slice(0, SHORT_TEXT).replace(long ? /\s+\S{0,30}$/ : "", "");
    const text = element("p", { class: "text", dir: "auto" }, long ? `${short}…` : short);
    parts.push(element("div", { class: "content" }, text));
    if (long) {
      parts.at(-1).append(more("Whole text", (open) => {
        text.textContent = open ? sample.text : `${short}…`;
      }));
    }
  }
  if (sample.cells.length > 0) {
    const lines = sample.cells.map(([name, value], number) =>
      element(
        "tr",
        { hidden: number >= SHORT_ROW },
        element("th", { scope: "row" }, element("bdi", {}, name)),
        element("td", {}, element("bdi", {}, value)),
      ),
    );
    const caption = element("caption", { class: "unseen" }, `Features of sample ${sample.id}`);
    const table = element("table", { class: "cells" }, caption, element("tbody", {}, ...lines));
    parts.push(element("div", { class: "content" }, table));
    if (lines.length > SHORT_ROW) {
      parts.at(-1).append(more(`All ${lines.length} columns`, (open) => {
        for (const line of lines.slice(SHORT_ROW)) line.hidden = !open;
      }));
    }
  }
  return parts;
}

/** A button that shows all of something, and less again. */
function more(title, show) {
  const button = element(
    "button",
    { type: "button", class: "more", tabindex: -1, "aria-expanded": "false" },
    title,
  );
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", open);
    button.textContent = open ? "Less" : title;
    show(open);
  });
  return button;
}

/** The picture of a card: a button that enlarges it, or the reason why there is none. */
function picture(sample, given, refined) {
  if (sample.image === null) return element("div", { class: "picture" }, problem(sample.problem));
  const frame = element("button", {
    type: "button",
    class: "picture",
    tabindex: -1,
    title: "enlarge (Enter)",
  });
  const image = element("img", {
    alt: `Sample ${sample.id}: given ${given}, refined ${refined}`,
    decoding: "async",
    loading: "lazy",
  });
  image.addEventListener("load", () => sharpen(image));
  image.addEventListener("error", () => {
    frame.replaceWith(element("div", { class: "picture" }, problem("the thumbnail cannot be decoded")));
  });
  image.src = sample.image;
  frame.append(image);
  return frame;
}

function problem(text) {
  return element("p", { class: "problem" }, text);
}

/** Shows the pixels of a tiny image, which smooth scaling would blur. */
function sharpen(image) {
  image.classList.toggle("tiny", image.naturalWidth < 48);
}
