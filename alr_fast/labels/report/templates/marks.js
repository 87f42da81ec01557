// Marks: keep, fix or unsure for a sample, stored by the browser; their export as CSV.

const MARKS = ["keep", "fix", "unsure"];

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
        if (MARKS.includes(mark)) this.byId.set(id, mark);
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

  of(sample) {
    return this.byId.get(String(sample.id)) ?? null;
  }

  set(sample, mark) {
    if (mark === null) this.byId.delete(String(sample.id));
    else this.byId.set(String(sample.id), mark);
    this.write();
  }

  clear() {
    this.byId.clear();
    this.write();
  }
}

// A spreadsheet would run a text with this start as a formula, or drop a leading apostrophe.
const FORMULA_START = /^['=+\-@\t\r\n＝＋－＠]/;

/**
 * A value as a field of a CSV file (RFC 4180): numbers are unquoted, texts quoted. A text that a
 * spreadsheet might run, or that starts with an apostrophe, gets an apostrophe in front. Programs that
 * read the file remove one leading apostrophe.
 */
function csvField(value) {
  if (typeof value !== "string") return value === null ? "" : String(value);
  const text = FORMULA_START.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

/** The marked samples as CSV; `label` is the class number that the mark selects. */
function marksCsv(samples, marks) {
  const header = "id,path,given,refined,score,mark,label,given_name,refined_name";
  const lines = samples
    .filter((sample) => marks.of(sample) !== null)
    .map((sample) => {
      const mark = marks.of(sample);
      const label = { keep: sample.given, fix: sample.refined, unsure: null }[mark];
      const names = [report.names[sample.given], report.names[sample.refined]];
      const { id, path, given, refined, score } = sample;
      return [id, path, given, refined, score, mark, label, ...names].map(csvField).join(",");
    });
  return [header, ...lines, ""].join("\r\n");
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  element("a", { href: url, download: name }).click();
  // The browser reads the address after the click.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
