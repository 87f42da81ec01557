// Marks: keep, fix or unsure for a sample, stored by the browser; their export as CSV.
//
// The browser stores a text for each sample: keep, unsure or "fix 7" (to class 7). The class is
// stored because a page of the same samples with other predictions has other refined classes. Earlier
// pages stored "fix" for the refined class.

const MARKS = ["keep", "fix", "unsure"];
const STORED = /^(?:keep|unsure|fix(?: (\d+))?)$/;

/** Marks by sample id. `kept` is true if the browser stores them. */
class Marks {
  constructor(key) {
    this.key = key;
    this.kept = true;
    this.read();
  }

  /** Reads the stored marks, including those of samples that this page does not list. */
  read() {
    this.byId = new Map();
    try {
      const stored = JSON.parse(window.localStorage.getItem(this.key) ?? "{}");
      for (const [id, mark] of Object.entries(stored ?? {})) {
        const match = typeof mark === "string" ? STORED.exec(mark) : null;
        if (match && Number(match[1] ?? 0) < report.names.length) this.byId.set(id, mark);
      }
    } catch (error) {
      // The next mark replaces invalid JSON; any other error means that there is no storage.
      if (!(error instanceof SyntaxError)) this.kept = false;
    }
  }

  write() {
    try {
      window.localStorage.setItem(this.key, JSON.stringify(Object.fromEntries(this.byId)));
      this.kept = true;
    } catch {
      this.kept = false;
    }
  }

  /** The mark of a sample, one of MARKS, or null. */
  of(sample) {
    return this.byId.get(String(sample.id))?.split(" ")[0] ?? null;
  }

  /** The class that the mark of a sample selects; null if it selects none. */
  labelOf(sample) {
    const [mark, label] = this.byId.get(String(sample.id))?.split(" ") ?? [];
    if (mark === "fix") return label === undefined ? sample.refined : Number(label);
    return mark === "keep" ? sample.given : null;
  }

  /** Sets or, with null, removes a mark; `label` is the class of a fix. */
  set(sample, mark, label) {
    const key = String(sample.id);
    if (mark === null) this.byId.delete(key);
    else this.byId.set(key, mark === "fix" ? `fix ${label}` : mark);
    this.write();
  }

  clear() {
    this.byId.clear();
    this.write();
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
