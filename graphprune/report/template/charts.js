// Charts that any report of ours can use: each takes plain rows and gives an element.

// Rows of {id, name, whole, kept, tip, onclick}: how wide each was and is, to one scale or each to its own.
function widthChart(rows, own) {
  const most = Math.max(1, ...rows.map((row) => row.whole));
  return h("div", { class: "rows" }, rows.map((row) => h("div", { class: "row", tip: row.tip },
    h("div", { class: "who" }, h("span", { class: "id" }, row.id), h("button", { type: "button", class: "link", onclick: row.onclick }, row.name)),
    h("div", { class: "widthbar", style: { width: own ? "100%" : 100 * row.whole / most + "%" } }, h("i", { style: { width: 100 * row.kept / row.whole + "%" } })),
    h("div", { class: "figures-right" }, row.whole + " → " + row.kept, h("span", { class: "share muted" }, percent(row.kept / row.whole, 0))))));
}

// Counts per bin, kept above removed, with the threshold that parts them: {kept, gone, place, cut, low, high, log}.
function histogram(data, unit) {
  const n = data.kept.length, most = Math.max(1, ...data.kept.map((k, i) => k + data.gone[i])), high = 76;
  const bars = [];
  data.kept.forEach((kept, i) => {
    const gone = data.gone[i], x = 100 * i / n, width = 100 / n - 0.5;
    const a = high * gone / most, b = high * kept / most;
    if (gone) bars.push(s("rect", { class: "gone", x, width, y: 80 - a, height: a }));
    if (kept) bars.push(s("rect", { class: "kept", x, width, y: 80 - a - b, height: b }));
  });
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const text = sum(data.kept) + " kept, " + sum(data.gone) + " removed"
    + (data.cut === null ? "" : "\nthreshold " + figure(data.cut) + " " + unit);
  return h("div", { tip: text },
    s("svg", { viewBox: "0 0 100 84", preserveAspectRatio: "none", role: "img", "aria-label": text },
      s("line", { class: "base", x1: 0, x2: 100, y1: 80.5, y2: 80.5, "vector-effect": "non-scaling-stroke" }), bars,
      data.place === null ? null : s("line", { class: "cut", x1: 100 * data.place, x2: 100 * data.place, y1: 0, y2: 84, "vector-effect": "non-scaling-stroke" })),
    h("div", { class: "axis" }, h("span", null, figure(data.low)), data.log ? h("span", null, "log") : null, h("span", null, figure(data.high))));
}

// Rows of {name, before, after, tip}: two numbers each on one logarithmic axis.
function dumbbells(rows) {
  const values = rows.flatMap((row) => [row.before, row.after]).filter((x) => x > 0);
  const floor = 1e-6, top = Math.ceil(Math.log10(Math.max(floor * 10, ...values)) - 1e-9);
  const low = Math.min(top - 1, Math.floor(Math.log10(Math.max(floor, Math.min(1, ...values))) + 1e-9));
  const place = (x) => 100 * Math.min(1, Math.max(0, (Math.log10(Math.max(x || 0, 1e-300)) - low) / (top - low)));
  const ticks = [];
  for (let power = low; power <= top; power += Math.ceil((top - low) / 8)) ticks.push(power);
  return h("div", { class: "rows" },
    h("div", { class: "row" }, h("span"), h("div", { class: "ticks" }, ticks.map((p) => h("span", { style: { left: place(10 ** p) + "%" } }, p < -3 || p > 3 ? "1e" + p : String(10 ** p)))), h("span")),
    rows.map((row) => h("div", { class: "row", tip: row.tip },
      h("div", { class: "who mono" }, row.name),
      h("div", { class: "dumbbell" },
        h("i", { class: "span", style: { left: Math.min(place(row.before), place(row.after)) + "%", width: Math.abs(place(row.before) - place(row.after)) + "%" } }),
        h("i", { class: "before", style: { left: place(row.before) + "%" } }), h("i", { class: "after", style: { left: place(row.after) + "%" } })),
      h("div", { class: "figures-right" }, figure(row.before) + " → " + figure(row.after)))));
}
function legend(...entries) {
  return h("div", { class: "legend" }, entries.map(([name, text]) => h("span", null, h("i", { class: name }), text)));
}
