// List of the suspicious samples. DataTables searches, filters, sorts and paginates; its table stays
// hidden, and the rows of its current page become cards.

const COLUMNS = [
  { title: "score", data: "rank", type: "num" }, // which no two samples share
  { title: "probability of the refined label", data: "refinedProbability", type: "num" },
  { title: "probability of the given label", data: "givenProbability", type: "num" },
  { title: "changes of the refined class", data: "changes", type: "num" },
  { title: "given class", data: "given", type: "num" },
  { title: "refined class", data: "refined", type: "num" },
  { title: "id", data: "id", type: "num", searchable: true },
  { title: "path", data: "path", type: "string", searchable: true },
];
const KEYS = { 1: "keep", 2: "fix", 3: "unsure", 0: null };

class SuspectList {
  constructor(samples) {
    this.samples = samples.map((sample, place) => ({ ...sample, rank: samples.length - place }));
    this.byId = new Map(this.samples.map((sample) => [sample.id, sample]));
    const changed = (marks) => {
      if (marks) {
        this.table.rows().invalidate().draw(false);
        this.viewer.refresh();
      }
      this.showMarks();
    };
    this.marks =
      report.server === null
        ? new Marks(report.key, changed)
        : new ServedMarks(report.key, report.server, changed);
    this.filters = { given: null, refined: null, mark: "" };
    this.cards = element("ul", { class: `cards ${noun}`, "aria-labelledby": "suspects-title" });
    this.nothing = element("p", { class: "box quiet", hidden: true }, `No ${one} matches.`);
    this.controls = Object.fromEntries(
      ["given", "refined", "mark"].map((name) => [name, document.getElementById(`filter-${name}`)]),
    );
    // Highest first: keep, fix, unsure, not marked.
    const rank = (sample) => [...MARKS].reverse().indexOf(this.marks.of(sample));
    // Without those that no sample has.
    const known = ({ data }) => samples.some((sample) => ![null, ""].includes(sample[data]));
    this.columns = [...COLUMNS.filter(known), { title: "mark", data: rank, type: "num" }];
    // By score, then by id, as everywhere else.
    this.ties = [
      [0, "desc"],
      [this.columns.findIndex(({ data }) => data === "id"), "asc"],
    ];
    this.orderBy = document.getElementById("order-by");
    this.direction = document.getElementById("order-direction");
    this.viewer = new Viewer(this);
    this.table = this.makeTable();
    this.placeControls();
    this.listen();
    this.draw();
    this.showMarks();
  }

  // --- table and controls -------------------------------------------------------------------

  makeTable() {
    // DataTables searches text columns as HTML, so they are escaped.
    const escaped = DataTable.render.text();
    const names = (sample) => {
      return `${report.shownNames[sample.given]} → ${report.shownNames[sample.refined]}`;
    };
    const shown = ({ text, cells }) => [text ?? "", ...cells.flat()].join(" ");
    const columns = [
      ...this.columns.map((column) => ({ searchable: false, ...column })),
      { title: "names", data: names, type: "string", searchable: true },
      { title: "content", data: shown, type: "string", searchable: true },
    ];
    const table = new DataTable("#suspect-table", {
      data: this.samples,
      columns: columns.map((column) => ({
        ...column,
        visible: false,
        render: column.type === "string" ? escaped : undefined,
      })),
      autoWidth: false,
      order: this.ties,
      pageLength: 24,
      lengthMenu: [12, 24, 48, 96],
      layout: {
        topStart: "search",
        topEnd: "pageLength",
        bottomStart: "info",
        bottomEnd: { paging: { buttons: 5 } },
      },
      language: {
        search: "Search",
        searchPlaceholder: noun === "images" ? "name, path, id" : "name, content, id",
        lengthMenu: `${noun[0].toUpperCase()}${noun.slice(1)} per page _MENU_`,
        info: "_START_ to _END_ of _TOTAL_",
        infoEmpty: `No ${noun}`,
        infoFiltered: "(of _MAX_ listed)",
      },
    });
    const { filters, marks } = this;
    table.search.fixed("given", (_, s) => filters.given === null || s.given === filters.given);
    table.search.fixed(
      "refined",
      (_, s) => filters.refined === null || s.refined === filters.refined,
    );
    table.search.fixed("mark", (_, s) => {
      const mark = marks.of(s);
      const wanted = { "": true, none: mark === null, any: mark !== null };
      return wanted[filters.mark] ?? mark === filters.mark;
    });
    return table;
  }

  placeControls() {
    const container = this.table.table().container();
    document.getElementById("search-place").append(container.querySelector(".dt-search"));
    document.getElementById("length-place").append(container.querySelector(".dt-length"));
    this.table.table().node().before(this.nothing, this.cards);
    for (const name of ["given", "refined"]) {
      const counts = new Map();
      for (const sample of this.samples) {
        counts.set(sample[name], (counts.get(sample[name]) ?? 0) + 1);
      }
      for (const [k, count] of [...counts].sort(([a], [b]) => a - b)) {
        this.addClass(this.controls[name], k, count);
      }
    }
    this.columns.forEach(({ title }, number) => {
      this.orderBy.append(element("option", { value: number }, title));
    });
  }

  addClass(select, k, count) {
    select.append(element("option", { value: k }, `${report.shownNames[k]} (${count})`));
  }

  listen() {
    for (const [name, select] of Object.entries(this.controls)) {
      select.addEventListener("change", () => {
        const { value } = select;
        this.filter({ [name]: name === "mark" ? value : value === "" ? null : Number(value) });
      });
    }
    for (const select of [this.orderBy, this.direction]) {
      select.addEventListener("change", () => {
        const first = [Number(this.orderBy.value), this.direction.value];
        this.table.order([first, ...this.ties]).draw();
      });
    }
    document
      .getElementById("filters")
      .addEventListener("submit", (event) => event.preventDefault());
    document.getElementById("clear-filters").addEventListener("click", () => {
      this.table.search("");
      this.filter({ given: null, refined: null, mark: "" });
      this.controls.given.focus();
    });
    for (const button of document.querySelectorAll(".pair")) {
      button.addEventListener("click", () => this.choosePair(button));
    }
    document.getElementById("export-marks").addEventListener("click", () => {
      download("marks.csv", marksCsv(this.samples, this.marks));
    });
    document.getElementById("clear-marks").addEventListener("click", () => {
      const count = this.samples.filter((sample) => this.marks.of(sample) !== null).length;
      if (
        !window.confirm(
          `Clear ${count === 1 ? "1 mark" : `all ${count} marks`}? This cannot be undone.`,
        )
      )
        return;
      this.marks.clear(this.samples);
      this.table.rows().invalidate().draw(false);
      this.showMarks();
      announce("All marks are cleared.");
    });
    this.table.on("draw", () => this.draw());
    this.table.on("page", () => {
      const top = document.querySelector(".filtered");
      if (top.getBoundingClientRect().top < 0) {
        top.scrollIntoView({ behavior: reducedMotion.matches ? "auto" : "smooth" });
      }
    });
    this.cards.addEventListener("click", (event) => {
      const picture = event.target.closest("button.picture");
      if (picture) this.viewer.open(this.sampleOf(picture.closest(".card")));
      else this.onControl(event);
    });
    this.cards.addEventListener("change", (event) => this.onControl(event));
    this.cards.addEventListener("keydown", (event) => this.onKey(event));
    this.cards.addEventListener("focusin", (event) => this.activate(event.target.closest(".card")));
  }

  // --- filters ------------------------------------------------------------------------------

  filter(change) {
    Object.assign(this.filters, change);
    const { given, refined, mark } = this.filters;
    for (const [name, k] of Object.entries({ given, refined })) {
      const select = this.controls[name];
      // The classes of a pair may have no suspicious images.
      if (k !== null && ![...select.options].some((option) => option.value === String(k))) {
        this.addClass(select, k, 0);
      }
      select.value = k ?? "";
    }
    this.controls.mark.value = mark;
    this.table.draw();
  }

  choosePair(button) {
    if (button.getAttribute("aria-pressed") === "true") {
      this.filter({ given: null, refined: null });
      return;
    }
    this.filter({ given: Number(button.dataset.given), refined: Number(button.dataset.refined) });
    const top = document.querySelector(".filtered");
    top.scrollIntoView({ behavior: reducedMotion.matches ? "auto" : "smooth" });
    document.getElementById("clear-filters").focus({ preventScroll: true });
  }

  showFilters() {
    const { given, refined, mark } = this.filters;
    const parts = [];
    if (given !== null) parts.push(`given ${report.shownNames[given]}`);
    if (refined !== null) parts.push(`refined ${report.shownNames[refined]}`);
    if (mark !== "") parts.push(`mark: ${this.controls.mark.selectedOptions[0].text}`);
    if (this.table.search() !== "") parts.push(`“${this.table.search()}”`);
    const shown = this.table.page.info().recordsDisplay;
    const filtered = parts.length > 0;
    const text = `${thousands(shown)} of ${thousands(this.samples.length)} ${noun}`;
    document.getElementById("filter-text").textContent = filtered
      ? `${text}: ${parts.join(", ")}`
      : text;
    document.getElementById("clear-filters").hidden = !filtered;
    for (const button of document.querySelectorAll(".pair")) {
      const { dataset } = button;
      const pressed = Number(dataset.given) === given && Number(dataset.refined) === refined;
      button.setAttribute("aria-pressed", pressed);
    }
  }

  // --- cards --------------------------------------------------------------------------------

  /** Makes the cards of this page; those of other pages are not in the document. */
  draw() {
    const focused = this.cards.contains(document.activeElement);
    const before = this.position();
    const rows = this.table.rows({ page: "current", search: "applied", order: "applied" });
    this.shown = rows.data().toArray();
    const items = this.shown.map((sample) => {
      const card = makeCard(sample);
      this.showMark(card, sample);
      return element("li", {}, card);
    });
    this.cards.replaceChildren(...items);
    this.nothing.hidden = this.shown.length > 0;
    this.showFilters();
    const cards = this.all();
    if (cards.length === 0) {
      if (focused) document.getElementById("suspects").focus();
      return;
    }
    const next = cards[Math.min(Math.max(before, 0), cards.length - 1)];
    if (focused) next.focus();
    else this.activate(next);
  }

  all() {
    return [...this.cards.querySelectorAll(".card")];
  }

  position() {
    return this.all().findIndex((card) => card.tabIndex === 0);
  }

  /** Makes a card with its buttons the target of the Tab key. */
  activate(card) {
    if (!card) return;
    for (const other of this.all()) {
      other.tabIndex = other === card ? 0 : -1;
      setTabIndex(other, other.tabIndex);
    }
  }

  /** Focuses the card of a sample or, if it has left the list, the one in its place. */
  focusSample(sample, place) {
    const found = this.placeOf(sample);
    const cards = this.all();
    cards[Math.min(found < 0 ? place : found, cards.length - 1)]?.focus();
  }

  /** The place of a sample among those shown, or -1. */
  placeOf(sample) {
    return this.shown.findIndex(({ id }) => id === sample.id);
  }

  /**
   * The next or previous sample in the list; null if there is none, undefined if another page of
   * the list has it.
   *
   * @param {number} place Where the sample is or, if it has left the list, was among those shown.
   */
  neighbour(place, sample, direction) {
    const found = this.placeOf(sample);
    const target = found >= 0 ? found + direction : direction > 0 ? place : place - 1;
    if (this.shown[target]) return this.shown[target];
    const { page, pages } = this.table.page.info();
    return page + direction >= 0 && page + direction < pages ? undefined : null;
  }

  /** The same; shows the page of the list that has it. */
  turnTo(place, sample, direction) {
    const found = this.neighbour(place, sample, direction);
    if (found !== undefined) return found;
    this.turnPage(direction);
    return this.shown.at(direction > 0 ? 0 : -1);
  }

  // --- marks --------------------------------------------------------------------------------

  /** A click or a change of a control in a card. */
  onControl(event) {
    if (event.type === "change") {
      this.onChange(event);
      return;
    }
    const button = event.target.closest("button[data-mark]");
    if (!button) return;
    // The button of the current mark removes it.
    const pressed = button.getAttribute("aria-pressed") === "true";
    this.setMark(button.closest(".card"), pressed ? null : button.dataset.mark);
  }

  /** Another class was chosen. */
  onChange(event) {
    const control = event.target.closest(".other");
    if (!control) return;
    const card = control.closest(".card");
    const text = control.value.trim();
    const k = control.tagName === "SELECT" ? Number(text) : classNamed(text);
    if (text === "") {
      this.setMark(card, null);
    } else if (k < 0) {
      control.setAttribute("aria-invalid", "true");
      announce(`There is no class ${text}.`);
    } else if (k === this.sampleOf(card).given) {
      this.setMark(card, "keep");
    } else {
      this.setMark(card, "fix", k);
    }
  }

  sampleOf(card) {
    return this.byId.get(Number(card.dataset.id));
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    const card = event.target.closest(".card");
    if (!card) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") card.focus();
      return;
    }
    if (this.onMarkKey(event, card)) return;
    if (event.key === "Enter" && event.target === card && card.querySelector("button.picture")) {
      event.preventDefault();
      this.viewer.open(this.sampleOf(card));
      return;
    }
    const cards = this.all();
    const lineStart = cards[0].getBoundingClientRect().top;
    const perLine = cards.filter((c) => c.getBoundingClientRect().top === lineStart).length;
    const here = cards.indexOf(card);
    const steps = {
      ArrowRight: 1,
      j: 1,
      ArrowLeft: -1,
      k: -1,
      ArrowDown: perLine,
      ArrowUp: -perLine,
      Home: -here,
      End: cards.length - 1 - here,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const target = here + steps[event.key];
    if (cards[target]) cards[target].focus();
    else this.turnPage(Math.sign(steps[event.key]));
  }

  /** Sets the mark of a card by a key; returns whether the key is one. */
  onMarkKey(event, card) {
    const other = card.querySelector(".other");
    if (event.key === OTHER_KEY && other) other.focus();
    else if (event.key in KEYS) this.setMark(card, KEYS[event.key]);
    else return false;
    event.preventDefault();
    return true;
  }

  /** Moves past the end of a page: to the first card of the next or the last of the previous. */
  turnPage(direction) {
    const { page, pages } = this.table.page.info();
    if (page + direction < 0 || page + direction >= pages) return;
    this.table.page(page + direction).draw("page");
    this.all()
      .at(direction > 0 ? 0 : -1)
      .focus();
  }

  /** Marks a sample; `label` is the class of a fix, by default the proposed one. */
  setMark(card, mark, label = null) {
    const sample = this.sampleOf(card);
    const fixed = label ?? sample.proposal;
    if (mark === "fix" && fixed === null) return;
    this.marks.set(sample, mark, fixed);
    this.table.row((_, other) => other.id === sample.id).invalidate();
    for (const same of document.querySelectorAll(`.card[data-id="${sample.id}"]`)) {
      this.showMark(same, sample); // in the list, and enlarged
    }
    this.showMarks();
    const to = mark === "fix" ? ` to ${report.shownNames[fixed]}` : "";
    announce(`Sample ${sample.id}: ${mark ?? "not marked"}${to}. ${this.countText()}`);
    // Remove cards that no longer match: otherwise the next page would skip as many samples.
    if (this.filters.mark !== "") this.table.draw(false);
    this.viewer.update();
  }

  showMark(card, sample) {
    const mark = this.marks.of(sample);
    const label = this.marks.labelOf(sample);
    const byHand = mark === "fix" && label !== sample.proposal;
    card.dataset.mark = mark ?? "";
    for (const button of card.querySelectorAll("button[data-mark]")) {
      button.setAttribute("aria-pressed", button.dataset.mark === mark && !byHand);
    }
    const other = card.querySelector(".other");
    if (!other) return;
    other.removeAttribute("aria-invalid");
    other.classList.toggle("chosen", byHand);
    const value = other.tagName === "SELECT" ? label : report.shownNames[label];
    other.value = byHand ? value : "";
  }

  countText() {
    const count = (wanted) => this.samples.filter((sample) => wanted(this.marks.of(sample))).length;
    const counts = MARKS.map((mark) => `${thousands(count((other) => other === mark))} ${mark}`);
    const all = thousands(count((mark) => mark !== null));
    return `${all} of ${thousands(this.samples.length)} marked: ${counts.join(", ")}`;
  }

  showMarks() {
    document.getElementById("mark-counts").textContent = this.countText();
    const { text, safe } = this.marks.state();
    const kept = document.getElementById("marks-kept");
    kept.textContent = text;
    kept.className = safe ? "quiet" : "unsafe";
    const none = this.samples.every((sample) => this.marks.of(sample) === null);
    document.getElementById("export-marks").disabled = none;
    document.getElementById("clear-marks").disabled = none;
  }
}

if (report.suspects.length > 0) new SuspectList(report.suspects);
