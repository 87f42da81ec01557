// The choice of any class but the given one: a menu, or with many classes a field that searches them.

const OTHER_KEY = "4"; // moves to the choice of another class
const MENU_CLASSES = 30; // with more, another class is searched by its name
const LISTED_CLASSES = 50; // that a search lists; more of them are found by more letters

/** All classes but the given one, the most probable ones first. */
function candidates(sample) {
  const first = new Map(sample.others);
  const rest = report.shownNames.map((_, k) => k).filter((k) => !first.has(k));
  return [...first.keys(), ...rest]
    .filter((k) => k !== sample.given)
    .map((k) => {
      const name = report.shownNames[k];
      const probability = first.get(k);
      return { k, name, text: probability ? `${name} (${percent(probability)})` : name };
    });
}

/** The element of class "other", whose event "change" tells that another class was chosen. */
function otherClass(sample) {
  const attributes = {
    class: "other",
    tabindex: -1,
    "aria-label": `Another class for sample ${sample.id}`,
    title: `another class (key ${OTHER_KEY})`,
  };
  if (report.names.length > MENU_CLASSES) return searchField(sample, attributes);
  const options = candidates(sample).map(({ k, text }) => element("option", { value: k }, text));
  return element(
    "select",
    attributes,
    element("option", { value: "" }, "other class"),
    ...options,
  );
}

/** The class with this name, whatever the case of its letters unless two differ in it; or -1. */
function classNamed(name) {
  const { shownNames } = report;
  const exact = shownNames.indexOf(name);
  if (exact >= 0) return exact;
  return shownNames.findIndex((other) => other.toLowerCase() === name.toLowerCase());
}

/**
 * A field with a list of the classes whose names contain its text (a combobox with a list, see
 * https://www.w3.org/WAI/ARIA/apg/patterns/combobox). Not a datalist: phones show none, or a few
 * entries.
 */
function searchField(sample, attributes) {
  const field = element("input", {
    ...attributes,
    type: "text",
    role: "combobox",
    "aria-autocomplete": "list",
    "aria-expanded": "false",
    placeholder: "other class: search",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    enterkeyhint: "done",
  });
  const frame = element("div", { class: "search" }, field);
  let list = null;
  let all = null;

  const close = () => {
    list?.remove();
    list = null;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-controls");
    field.removeAttribute("aria-activedescendant");
  };
  const options = () => [...(list?.querySelectorAll('[role="option"]') ?? [])];
  const active = () => options().findIndex((option) => option.getAttribute("aria-selected") === "true");
  const activate = (number) => {
    for (const [k, option] of options().entries()) {
      option.setAttribute("aria-selected", k === number);
      if (k !== number) continue;
      field.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    }
  };
  const choose = (name) => {
    close();
    field.value = name;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const open = () => {
    const wanted = field.value.trim().toLowerCase();
    all ??= candidates(sample);
    const found = all.filter(({ name }) => name.toLowerCase().includes(wanted));
    close();
    const id = `classes-${sample.id}-${field.closest("dialog") ? "enlarged" : "card"}`;
    const entries = found.slice(0, LISTED_CLASSES).map(({ k, name, text }) => {
      const option = element("li", { role: "option", id: `${id}-${k}`, "aria-selected": "false" }, text);
      option.addEventListener("click", () => choose(name));
      return option;
    });
    const left = found.length - entries.length;
    const rest = found.length === 0 ? "no such class" : `${thousands(left)} more: type to search`;
    const label = `Classes for sample ${sample.id}`;
    list = element("div", { class: "found" }, element("ul", { role: "listbox", id, "aria-label": label }, ...entries));
    if (left > 0 || found.length === 0) list.append(element("p", { class: "quiet" }, rest));
    // The field keeps the focus, so that it can be typed in after scrolling.
    list.addEventListener("mousedown", (event) => event.preventDefault());
    frame.append(list);
    field.setAttribute("aria-expanded", "true");
    field.setAttribute("aria-controls", id);
  };
  field.addEventListener("focus", open);
  field.addEventListener("click", () => list ?? open());
  field.addEventListener("input", open);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    const count = options().length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list === null) open();
      const step = event.key === "ArrowDown" ? 1 : -1;
      const from = active() < 0 && step < 0 ? count : active();
      if (count > 0) activate((from + step + count) % count);
    } else if (event.key === "Enter") {
      event.preventDefault();
      const chosen = options()[active()];
      const text = field.value.trim();
      if (chosen) chosen.click();
      else if (count === 1 && text !== "") options()[0].click(); // needs no arrow key
      else if (text !== "" || field.classList.contains("chosen")) choose(text);
      else close();
    } else if (event.key === "Escape" && list !== null) {
      event.preventDefault();
      event.stopPropagation();
      close();
    }
  });
  return frame;
}
