// Helpers, colour scheme, plots, confusion and the table of the classes.
// These files form one module after that of DataTables, in the order that page.py lists.

const report = JSON.parse(document.getElementById("report-data").textContent);
// itables exposes its DataTables through jQuery.
const DataTable = window.$.fn.dataTable;
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");
const smallWindow = window.matchMedia("(max-width: 40rem)");
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

/**
 * Makes an element. Text becomes text nodes: data is never parsed as HTML.
 *
 * @param {string} tag Name of the element.
 * @param {Object} attributes Attributes; null and false omit an attribute.
 * @param {...(Node|string)} children Content.
 */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Announces a text to screen readers. */
function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Makes the controls of a card targets of the Tab key (0), or not (-1). */
function setTabIndex(card, index) {
  for (const control of card.querySelectorAll("a, button, select, input")) control.tabIndex = index;
}

function thousands(count) {
  return count.toLocaleString("en-US");
}

function percent(fraction) {
  return fraction === null ? "–" : `${(100 * fraction).toFixed(1)}%`;
}

// --- colour scheme --------------------------------------------------------------------------

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The figure in the colours of the scheme; a name has the same colour in all plots. */
function themed(figure, order) {
  const axis = {
    gridcolor: color("line"),
    linecolor: color("line"),
    zeroline: false,
    automargin: true,
  };
  const traces = figure.data.map((trace, place) => {
    const number = order.indexOf(trace.name);
    const line = {
      color: color(`curve-${number % 6}`),
      // An earlier curve shows on both sides of a later one with the same values.
      width: Math.min(2 + 2.5 * (figure.data.length - 1 - place), 9),
      dash: ["solid", "dash", "dot"][Math.floor(number / 6) % 3],
    };
    return { ...trace, line };
  });
  const title = { ...figure.layout.xaxis.title, font: { size: 13 }, standoff: 8 };
  const quiet = { color: color("quiet") };
  const texts = figure.layout.annotations ?? []; // above the plot
  const layout = {
    ...figure.layout,
    shapes: (figure.layout.shapes ?? []).map((shape) => ({
      ...shape,
      line: { ...quiet, width: 2, dash: "dot" },
    })),
    annotations: texts.map((text) => ({ ...text, font: quiet })),
    autosize: true,
    // On a phone, each curve takes a line of the legend.
    height: 300 + 20 * Math.max(0, traces.length - 4),
    margin: { l: 8, r: 12, t: 8 + 16 * texts.length, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: color("text") },
    hovermode: "x unified",
    hoverlabel: {
      bgcolor: color("surface"),
      bordercolor: color("line"),
      font: { color: color("text") },
      namelength: -1,
    },
    legend: { orientation: "h", x: 0, xanchor: "left", y: -0.24, yanchor: "top" },
    xaxis: { ...figure.layout.xaxis, ...axis, showgrid: false, showline: true, title },
    yaxis: { ...figure.layout.yaxis, ...axis, nticks: 6 },
  };
  return [traces, layout];
}

function drawPlots() {
  const names = report.figures.flatMap((figure) => (figure ? figure.data.map((t) => t.name) : []));
  const order = [...new Set(names)];
  const config = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false };
  for (const place of document.querySelectorAll(".plot")) {
    const figure = report.figures[Number(place.dataset.figure)];
    window.Plotly.react(place, ...themed(figure, order), config);
  }
}

function followScheme() {
  document.documentElement.classList.toggle("dark", darkScheme.matches);
  drawPlots();
}

// --- table of the classes -------------------------------------------------------------------

function startClassTable() {
  const table = document.getElementById("class-table");
  if (!table) return;
  const long = table.tBodies[0].rows.length > 30;
  new DataTable(table, {
    autoWidth: false,
    order: [[3, "desc"]],
    paging: long,
    pageLength: 15,
    lengthMenu: [15, 50, 200],
    layout: {
      topStart: long ? "search" : null,
      topEnd: long ? "pageLength" : null,
      bottomStart: long ? "info" : null,
      bottomEnd: long ? "paging" : null,
    },
    language: { search: "Search classes", lengthMenu: "Classes per page _MENU_" },
  });
}

// --- confusion ------------------------------------------------------------------------------

/** The matrix is a single stop of the Tab key; arrow keys move inside it. */
function startMatrix() {
  const table = document.querySelector(".matrix");
  if (!table) return;
  const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  const button = (row, column) => rows[row]?.[column]?.querySelector("button");
  const first = table.querySelector("button");
  if (first) first.tabIndex = 0;

  table.addEventListener("focusin", (event) => {
    table.querySelector('button[tabindex="0"]')?.setAttribute("tabindex", "-1");
    event.target.closest("button")?.setAttribute("tabindex", "0");
  });
  table.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    let row = rows.findIndex((cells) => cells.includes(cell));
    let column = rows[row].indexOf(cell);
    // Skip empty cells.
    do {
      row += step[0];
      column += step[1];
    } while (rows[row]?.[column] && !button(row, column));
    button(row, column)?.focus();
  });
}

// --- small windows --------------------------------------------------------------------------

/** Shows at which sides of a box that scrolls there is more. */
function startScrollers() {
  const show = (box) => {
    const hidden = box.scrollWidth - box.clientWidth;
    box.parentElement.classList.toggle("more-left", hidden > 1 && box.scrollLeft > 1);
    box.parentElement.classList.toggle("more-right", box.scrollLeft < hidden - 1);
  };
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) show(target.closest(".scroll"));
  });
  for (const box of document.querySelectorAll(".scroller > .scroll")) {
    box.addEventListener("scroll", () => show(box), { passive: true });
    sizes.observe(box);
    for (const table of box.querySelectorAll("table")) sizes.observe(table);
  }
}

/** The filters are open in wide windows, and out of the way of the images in small ones. */
function placeFilters() {
  const box = document.getElementById("filter-box");
  if (box) box.open = !smallWindow.matches;
}

darkScheme.addEventListener("change", followScheme);
smallWindow.addEventListener("change", placeFilters);
followScheme();
placeFilters();
startScrollers();
startClassTable();
startMatrix();
