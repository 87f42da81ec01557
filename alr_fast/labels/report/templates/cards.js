// A card for each sample: what is shown of it, its labels, and the choice of a mark.

const OTHER_KEY = "4"; // moves to the choice of another class
const MENU_CLASSES = 30; // with more, another class is searched by its name
const SHORT_TEXT = 280; // characters
const SHORT_ROW = 6; // columns
const noun = report.noun; // images, texts or samples
const one = noun.replace(/s$/, "");

/** The class that the button "fix" selects: the refined, or the next most probable one, or null. */
function proposed(sample) {
  return sample.refined === sample.given ? (sample.others[0]?.[0] ?? null) : sample.refined;
}

/** The card of a sample, without its mark. */
function makeCard(sample) {
  const given = report.shownNames[sample.given];
  const refined = report.shownNames[sample.refined];
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
  const target = proposed(sample);
  const next = sample.refined === sample.given && target !== null;
  const rows = [
    label("given", given, sample.givenProbability),
    next
      ? label("next", report.shownNames[target], sample.others[0][1])
      : label("refined", refined, sample.refinedProbability),
  ];
  // Where no other class was predicted, there is nothing to fix the label to.
  const buttons = MARKS.filter((mark) => mark !== "fix" || target !== null).map((mark) => {
    const text = mark === "fix" && next ? report.shownNames[target] : mark;
    const key = MARKS.indexOf(mark) + 1;
    const title = text === mark ? `${mark} (key ${key})` : `fix: ${text} (key ${key})`;
    return element("button", { type: "button", tabindex: -1, "data-mark": mark, title }, text);
  });
  return element(
    "article",
    {
      class: "card",
      tabindex: -1,
      "data-id": sample.id,
      "aria-label": `Sample ${sample.id}: given ${given}, refined ${refined}`,
      "aria-keyshortcuts": "1 2 3 4 0",
    },
    ...content(sample, given, refined),
    element("dl", { class: "labels" }, ...rows),
    element(
      "dl",
      { class: "details" },
      fact("score", sample.score === null ? "–" : sample.score.toFixed(3)),
      ...(sample.changes === null ? [] : [fact("changes", String(sample.changes))]),
      fact("id", String(sample.id)),
    ),
    ...(sample.path === ""
      ? []
      : [element("p", { class: "path", title: sample.shownPath }, element("bdi", {}, sample.shownPath))]),
    element(
      "div",
      { class: "choice", role: "group", "aria-label": `Mark of sample ${sample.id}` },
      ...buttons,
      // Of two classes, the buttons offer both.
      ...(report.names.length > (target === null ? 1 : 2) ? [otherClass(sample)] : []),
    ),
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

/** Names of all classes but the given one, the most probable ones first. */
function candidates(sample) {
  const first = new Map(sample.others);
  const rest = report.shownNames.map((_, k) => k).filter((k) => !first.has(k));
  return [...first.keys(), ...rest]
    .filter((k) => k !== sample.given)
    .map((k) => ({ k, name: report.shownNames[k], probability: first.get(k) }));
}

/** The choice of any class: a menu, or with many classes a field with suggestions. */
function otherClass(sample) {
  const attributes = {
    class: "other",
    tabindex: -1,
    "aria-label": `Another class for sample ${sample.id}`,
    title: `another class (key ${OTHER_KEY})`,
  };
  if (report.names.length > MENU_CLASSES) {
    return element("input", {
      ...attributes,
      type: "text",
      list: "class-list",
      placeholder: "other class",
      autocomplete: "off",
    });
  }
  const options = candidates(sample).map(({ k, name, probability }) =>
    element("option", { value: k }, probability ? `${name} (${percent(probability)})` : name),
  );
  return element(
    "select",
    attributes,
    element("option", { value: "" }, "other class"),
    ...options,
  );
}

function picture(sample, given, refined) {
  const frame = element("div", { class: "picture" });
  if (sample.image === null) {
    frame.append(element("p", { class: "problem" }, sample.problem));
    return frame;
  }
  const image = element("img", {
    alt: `Sample ${sample.id}: given ${given}, refined ${refined}`,
    decoding: "async",
    loading: "lazy",
  });
  image.addEventListener("load", () => {
    // Smooth scaling would blur a few pixels.
    image.classList.toggle("tiny", image.naturalWidth < 48);
  });
  image.addEventListener("error", () => {
    image.replaceWith(element("p", { class: "problem" }, "the thumbnail cannot be decoded"));
  });
  image.src = sample.image;
  frame.append(image);
  return frame;
}
