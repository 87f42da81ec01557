// A suspect enlarged, with its labels and the choice of a mark.

class Viewer {
  /** @param {SuspectList} list The list, whose page of samples it walks through. */
  constructor(list) {
    this.list = list;
    this.sample = null;
    this.place = -1; // of the sample among those shown
    this.dialog = document.getElementById("viewer");
    this.title = document.getElementById("viewer-title");
    this.picture = document.getElementById("viewer-picture");
    this.details = document.getElementById("viewer-details");
    this.previous = document.getElementById("viewer-previous");
    this.next = document.getElementById("viewer-next");
    this.previous.addEventListener("click", () => this.step(-1));
    this.next.addEventListener("click", () => this.step(1));
    document.getElementById("viewer-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // outside of it
    });
    this.dialog.addEventListener("close", () => {
      this.picture.replaceChildren();
      this.details.replaceChildren();
      list.focusSample(this.sample, this.place);
    });
    this.dialog.addEventListener("keydown", (event) => this.onKey(event));
    for (const kind of ["click", "change"]) {
      this.details.addEventListener(kind, (event) => list.onControl(event));
    }
  }

  /** The card of the sample; null while the view is closed, also for keys that come late. */
  get card() {
    return this.details.firstElementChild;
  }

  /** Opens the view of a sample that the page of the list shows. */
  open(sample) {
    this.show(sample);
    this.dialog.showModal();
    document.getElementById("viewer-close").focus();
  }

  show(sample) {
    this.sample = sample;
    this.title.textContent = `Sample ${sample.id}`;
    this.picture.replaceChildren(this.image(sample));
    const card = element("article", { class: "card", "data-id": sample.id }, ...details(sample));
    this.list.showMark(card, sample);
    setTabIndex(card, 0);
    this.details.replaceChildren(card);
    this.update();
  }

  /** After a change of marks elsewhere. */
  refresh() {
    if (this.card) this.list.showMark(this.card, this.sample);
    this.update();
  }

  /** After a change of the list. */
  update() {
    if (this.sample === null) return;
    const found = this.list.placeOf(this.sample);
    if (found >= 0) this.place = found;
    for (const [button, direction] of [[this.previous, -1], [this.next, 1]]) {
      button.disabled = this.list.neighbour(this.place, this.sample, direction) === null;
    }
  }

  /** The embedded image, until the whole one is loaded: its file may be elsewhere, or gone. */
  image(sample) {
    const alt = `Sample ${sample.id}, enlarged`;
    const small = element("img", { alt, src: sample.image });
    small.addEventListener("load", () => sharpen(small));
    if (sample.address !== "") {
      const whole = element("img", { alt });
      whole.addEventListener("load", () => {
        sharpen(whole);
        small.replaceWith(whole);
      });
      whole.src = sample.address;
    }
    return small;
  }

  step(direction) {
    const sample = this.list.turnTo(this.place, this.sample, direction);
    if (sample === null) return;
    this.show(sample);
    if (!this.dialog.contains(document.activeElement) || document.activeElement === this.dialog) {
      document.getElementById("viewer-close").focus();
    }
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    if (event.target.closest("input, select")) return;
    const step = { ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1 }[event.key];
    if (step) {
      event.preventDefault();
      this.step(step);
    } else if (this.card) {
      this.list.onMarkKey(event, this.card);
    }
  }
}
