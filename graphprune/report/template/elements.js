// Elements, numbers and tips. All text goes through text nodes: nothing from a model is ever read as markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, text] of Object.entries(value)) node.style.setProperty(name, text);
    else if (key === "tip") withTip(node, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}
function h(tag, attributes, ...children) { return fill(document.createElement(tag), attributes, children); }
function s(tag, attributes, ...children) { return fill(document.createElementNS(SVG, tag), attributes, children); }

// Puts these in place of what a node holds.
function put(node, ...children) { node.replaceChildren(); return fill(node, null, children); }

function human(n) {
  if (n === null || n === undefined) return "–";
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (n >= size) return (n / size).toFixed(2) + " " + unit;
  return String(Math.round(n));
}
function figure(x) {
  if (x === null || x === undefined) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(4)));
}
function percent(x, digits) { return x === null || x === undefined || !isFinite(x) ? "–" : (100 * x).toFixed(digits === undefined ? 1 : digits) + " %"; }
function plural(n, word) { return n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s"); }

// One tip for the page, shown at the pointer or below what has the focus.
const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = typeof text === "function" ? text() : text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.setProperty("left", Math.max(4, Math.min(x + 14, innerWidth - box.width - 8)) + "px");
  tip.style.setProperty("top", (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px");
}
function withTip(node, text) {
  node.addEventListener("pointermove", (event) => showTip(text, event.clientX, event.clientY));
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
  node.addEventListener("focus", () => { const box = node.getBoundingClientRect(); showTip(text, box.left, box.bottom - 12); });
  node.addEventListener("blur", () => { tip.hidden = true; });
}

// A table whose columns are {name, n: right-aligned, of: row -> text or node, key: row -> value to sort by}.
function table(columns, rows, classes) {
  const body = h("tbody");
  const heads = columns.map((column) => {
    const head = h("th", { class: column.n ? "n" : null, scope: "col" });
    if (column.key) head.append(h("button", { type: "button", onclick: () => sort(column, head) }, column.name));
    else head.append(column.name);
    return head;
  });
  function show(list) {
    put(body, list.map((row) => h("tr", null, columns.map((c) => h("td", { class: [c.n ? "n" : "", c.wide ? "wide" : ""].join(" ").trim() || null }, c.of(row))))));
  }
  function sort(column, head) {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    show(sorted(rows, column.key, down));
  }
  show(rows);
  return h("div", { class: "scroll" }, h("table", { class: classes || null }, columns.some((column) => column.name) && h("thead", null, h("tr", null, heads)), body));
}
function sorted(rows, key, down) {
  const sign = down ? -1 : 1;
  return rows.map((row, i) => [key(row), i, row]).sort(([a, i], [b, j]) => (a < b ? -sign : a > b ? sign : i - j)).map((entry) => entry[2]);
}
function chooser(label, options, onchange) {
  return h("label", null, label, h("select", { onchange: (event) => onchange(event.target.value) }, options.map(([value, text]) => h("option", { value }, text))));
}
function searchBox(label, oninput, id) {
  return h("input", { type: "search", id, placeholder: label, "aria-label": label, spellcheck: "false", oninput: (event) => oninput(event.target.value.trim().toLowerCase()) });
}
// A text with what was searched for marked in it.
function marked(text, query) {
  const at = query ? text.toLowerCase().indexOf(query) : -1;
  return at < 0 ? text : [text.slice(0, at), h("mark", null, text.slice(at, at + query.length)), text.slice(at + query.length)];
}
// A text cut to n characters: at its end, or at its beginning, as names tell more by their ends.
function head(text, n) { return text.length > n ? text.slice(0, n - 1) + "…" : text; }
function tail(text, n) { return text.length > n ? "…" + text.slice(1 - n).replace(/^[./]/, "") : text; }
// A group's name in n characters, with its kind where that is not the usual one.
function kindly(group, n) {
  const kind = group.kind === "channel" ? "" : group.kind + " · ";
  return kind + tail(group.name, n - kind.length);
}
