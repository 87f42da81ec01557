// Marks: keep, fix or unsure for a sample, stored by the browser or written to a file by the server of
// the page; their export as CSV.
//
// Stored is a text for each sample: keep, unsure or "fix 7" (to class 7). The class is
// stored because a page of the same samples with other predictions has other refined classes. Earlier
// pages stored "fix" for the refined class.

const MARKS = ["keep", "fix", "unsure"];
const STORED = /^(?:keep|unsure|fix(?: (\d+))?)$/;

function isMark(text) {
  const match = typeof text === "string" ? STORED.exec(text) : null;
  return match !== null && Number(match[1] ?? 0) < report.names.length;
}

/**
 * Marks by sample id, stored by the browser.
 *
 * @param {string} key Where they are stored.
 * @param {Function} changed Called when `state` has changed, or with true when marks have, other than
 *   by `set` or `clear`.
 */
class Marks {
  constructor(key, changed) {
    this.key = key;
    this.changed = changed;
    this.kept = true;
    this.byId = new Map();
    this.start();
  }

  start() {
    this.read();
    // The same page in another tab.
    window.addEventListener("storage", ({ key }) => {
      if (key !== this.key && key !== null) return;
      this.read();
      this.changed(true);
    });
  }

  /** Where the marks are, a sentence, and whether they are safe there. */
  state() {
    return this.kept
      ? { text: "Marks are kept in this browser; export them to use them elsewhere.", safe: true }
      : {
          text: "Marks are not kept: this browser stores nothing for this page. Export them before you leave.",
          safe: false,
        };
  }

  /** Reads the stored marks, including those of samples that this page does not list. */
  read() {
    this.byId = new Map();
    try {
      const stored = JSON.parse(window.localStorage.getItem(this.key) ?? "{}");
      for (const [id, mark] of Object.entries(stored ?? {})) {
        if (isMark(mark)) this.byId.set(id, mark);
      }
    } catch (error) {
      // The next mark replaces invalid JSON; any other error means that there is no storage.
      if (!(error instanceof SyntaxError)) this.kept = false;
    }
  }

  /** Sets marks, or removes those that are null: pairs of an id and a stored text. */
  put(changes) {
    for (const [id, mark] of changes) {
      if (mark === null) this.byId.delete(id);
      else this.byId.set(id, mark);
    }
    this.keep(changes);
  }

  keep() {
    try {
      window.localStorage.setItem(this.key, JSON.stringify(Object.fromEntries(this.byId)));
      this.kept = true;
    } catch {
      this.kept = false;
    }
  }

  /**
   * The mark of a sample, one of MARKS, or null, and the class that it selects, or null.
   *
   * Nothing is fixed to the given label: a class that was chosen and has become the given one since
   * is kept, and a mark without a class, whose refined label is the given one, says nothing.
   */
  meaningOf(sample) {
    const [mark = null, label] = this.byId.get(String(sample.id))?.split(" ") ?? [];
    if (mark === "keep") return [mark, sample.given];
    if (mark !== "fix") return [mark, null];
    const fixed = label === undefined ? sample.refined : Number(label);
    if (fixed !== sample.given) return [mark, fixed];
    return label === undefined ? [null, null] : ["keep", fixed];
  }

  /** The mark of a sample, one of MARKS, or null. */
  of(sample) {
    return this.meaningOf(sample)[0];
  }

  /** The class that the mark of a sample selects; null if it selects none. */
  labelOf(sample) {
    return this.meaningOf(sample)[1];
  }

  /** Sets or, with null, removes a mark; `label` is the class of a fix. */
  set(sample, mark, label) {
    this.put([[String(sample.id), mark === "fix" ? `fix ${label}` : mark]]);
  }

  /** Removes the marks of these samples. */
  clear(samples) {
    const marked = samples.filter((sample) => this.of(sample) !== null);
    this.put(marked.map(({ id }) => [String(id), null]));
  }
}

const RETRY = 3000; // milliseconds

/**
 * Marks that the server of the page writes to a file as they are made. Until the server has a mark,
 * the browser stores it under a key of its own, so that it survives the tab, and other tabs do not
 * overwrite it.
 *
 * @param {Object} server Its address for marks, and the file.
 */
class ServedMarks extends Marks {
  constructor(key, server, changed) {
    super(key, changed);
    this.server = server;
  }

  start() {
    this.unsaved = new Map();
    this.edits = 0; // so far: what was read meanwhile is out of date
    this.problem = null;
    this.loaded = false;
    try {
      for (const name of Object.keys(window.localStorage)) {
        if (!name.startsWith(`${this.key} `)) continue;
        const mark = window.localStorage.getItem(name);
        if (mark === "" || isMark(mark)) this.unsaved.set(name.slice(this.key.length + 1), mark || null);
      }
    } catch {
      // There is no storage: unsaved marks live as long as the page.
    }
    const refresh = () => {
      if (document.visibilityState === "visible") this.load();
    };
    document.addEventListener("visibilitychange", refresh);
    window.addEventListener("focus", refresh);
    window.addEventListener("beforeunload", (event) => {
      if (this.unsaved.size > 0 && this.problem !== null) event.preventDefault();
    });
    queueMicrotask(() => this.load().then(() => this.send()));
  }

  state() {
    if (this.problem !== null) {
      const count = this.unsaved.size;
      const what = count === 0 ? "No mark can be saved" : `Not saved: ${count === 1 ? "1 mark" : `${count} marks`}`;
      const them = count === 1 ? "It stays" : "They stay";
      const more =
        count === 0 ? "" : ` ${them} in this browser, which tries again; export marks before you leave.`;
      return { text: `${what}. ${this.problem}${more}`, safe: false };
    }
    const state = this.unsaved.size > 0 || !this.loaded ? "being saved" : "saved";
    return { text: `Marks are ${state} in ${this.server.file}`, safe: true };
  }

  keep(changes) {
    this.edits += 1;
    for (const [id, mark] of changes) {
      this.unsaved.set(id, mark);
      this.store(id, mark ?? "");
    }
    this.send();
  }

  store(id, text) {
    try {
      if (text === null) window.localStorage.removeItem(`${this.key} ${id}`);
      else window.localStorage.setItem(`${this.key} ${id}`, text);
    } catch {
      // As above.
    }
  }

  async request(options = {}) {
    let response;
    try {
      response = await fetch(this.server.marks, { credentials: "omit", redirect: "error", ...options });
    } catch {
      throw new Error("alr-fast review does not answer: it has ended, or the connection has.");
    }
    if (!response.ok) throw new Error(`${(await response.text()).trim()}.`);
    return response.json();
  }

  /** Reads the marks of the file, which another window may have changed. */
  async load() {
    const edits = this.edits;
    try {
      const { marks } = await this.request();
      if (edits !== this.edits || this.sending) {
        this.loaded = false;
        return;
      }
      const found = { ...marks, ...Object.fromEntries(this.unsaved) };
      const before = this.byId;
      this.byId = new Map(Object.entries(found).filter(([, mark]) => isMark(mark)));
      this.loaded = true;
      if (this.unsaved.size === 0) this.problem = null;
      const same = ([id, mark]) => before.get(id) === mark;
      this.changed(this.byId.size !== before.size || ![...this.byId].every(same));
    } catch (error) {
      this.problem = error.message;
      this.changed(false);
    }
  }

  /** Sends what is not saved, one request at a time. */
  async send() {
    if (this.sending || this.unsaved.size === 0) return;
    this.sending = true;
    const sent = new Map(this.unsaved);
    const body = JSON.stringify({ marks: Object.fromEntries(sent) });
    try {
      await this.request({
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
        keepalive: body.length < 50_000, // also when the tab is closed now
      });
      for (const [id, mark] of sent) {
        if (this.unsaved.get(id) !== mark) continue;
        this.unsaved.delete(id);
        this.store(id, null);
      }
      this.problem = null;
    } catch (error) {
      if (this.problem === null) announce(`Not saved. ${error.message}`);
      this.problem = error.message;
    }
    this.sending = false;
    this.changed(false);
    clearTimeout(this.retry);
    if (this.problem !== null) this.retry = setTimeout(() => this.send(), RETRY);
    else if (this.unsaved.size > 0) this.send();
    else if (!this.loaded) this.load();
  }
}

// A spreadsheet would run a text with this start as a formula; those that have an apostrophe before it
// get one more. `alr_fast/data/tables/cells.py` writes and reads the same.
const FORMULA_START = /^'*[=+\-@\t\r\n＝＋－＠]/;

/**
 * A value as a field of a CSV file (RFC 4180): numbers are unquoted, texts quoted. A text that a
 * spreadsheet might run gets an apostrophe in front, which programs that read the file remove.
 */
function csvField(value) {
  if (typeof value !== "string") return value === null ? "" : String(value);
  const text = FORMULA_START.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

/** The marked samples as CSV; `label` is the class number that the mark selects. */
function marksCsv(samples, marks) {
  const header = "id,path,given,refined,score,mark,label,given_name,refined_name,label_name";
  const lines = samples
    .filter((sample) => marks.of(sample) !== null)
    .map((sample) => {
      const label = marks.labelOf(sample);
      const names = [sample.given, sample.refined, label].map((k) => report.names[k] ?? null);
      const { id, path, given, refined, score } = sample;
      const values = [id, path, given, refined, score, marks.of(sample), label, ...names];
      return values.map(csvField).join(",");
    });
  return [header, ...lines, ""].join("\r\n");
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  element("a", { href: url, download: name }).click();
  // The browser reads the address after the click.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
