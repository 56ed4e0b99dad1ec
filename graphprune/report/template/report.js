// The report of one run.
const data = JSON.parse(document.getElementById("data").textContent);
const named = (group) => "g" + group.id + " · " + group.name;
const axes = (n, kind) => n.toLocaleString("en") + " " + kind + (n === 1 ? "axis" : "axes");
let graph = null;

function summary() {
  const cost = ([label, before, after]) => h("div", { class: "figure" },
    h("div", { class: "value" }, percent(before ? after / before : null)), h("div", { class: "meter" }, h("i", { style: { width: Math.min(100, 100 * after / before) + "%" } })),
    h("div", null, label + " kept"), h("div", { class: "label" }, human(before) + " → " + human(after)));
  const check = data.verify, out = [h("div", { class: "figures" }, data.costs.map(cost))];
  out.push(h("p", { class: "muted" }, data.groups_cut + " of " + plural(data.groups_in_all, "group") + " cut, " + (data.units[0] - data.units[1]).toLocaleString("en") + " of " + plural(data.units[0], "unit") + " removed."));
  if (data.evaluation.length) {
    out.push(h("h2", null, "Evaluation"), table([{ name: "", of: (r) => r[0] }, { name: "before", n: true, of: (r) => figure(r[1]) }, { name: "after", n: true, of: (r) => figure(r[2]) },
      { name: "difference", n: true, of: (r) => (r[1] === null || r[2] === null) ? "–" : (r[2] > r[1] ? "+" : r[2] < r[1] ? "−" : "") + figure(Math.abs(r[2] - r[1])) }], data.evaluation, "narrow"));
  }
  out.push(h("h2", null, "Proof"), h("p", null, h("span", { class: "good" }, check.passed ? "Proved. " : "Not proved. "),
    "The cut model was run beside the masked original (the source with the removed slices set to zero)" + (check.samples ? " on " + plural(check.samples, "sample") : "")
    + ": the largest difference is " + figure(check.max_rel_error) + " of an output's maximum, " + figure(check.tolerance) + " is allowed."),
  h("p", null, plural(check.exact_units, "exact unit") + " removed, whose removal equals zeroing; " + check.inexact_units.toLocaleString("en") + " inexact, which a normalisation or softmax looks across."
    + (data.recovery.used || data.stages.quantised ? " The proof is of the cut before its weights were " + [data.recovery.used && "recovered", data.stages.quantised && "quantised"].filter(Boolean).join(" and ") + "." : "")));
  if (data.stages.rows) {
    out.push(h("h2", null, "Stages"), h("p", { class: "muted" }, "Every stage of the run, its outputs against the source's on " + plural(data.stages.samples, "held-out sample") + "; INT8 alone is the source quantised in the same way."),
      table(data.stages.columns.map((name, i) => ({ name, n: i > 0, of: (r) => i === 0 ? r[0] : r[i] === null ? "–" : i === 1 ? human(r[i]) : figure(r[i]) })), data.stages.rows, "narrow"));
  }
  if (data.fidelity.rows && data.fidelity.rows.length) {
    const value = (row, x) => (row.share ? percent(x) : figure(x));
    out.push(h("h2", null, "Fidelity to the source"), h("p", { class: "muted" }, "Outputs against the source's on " + plural(data.fidelity.samples, "held-out sample") + "."),
      table([{ name: "output", of: (r) => h("code", null, r.what) }, { name: "measure", of: (r) => r.measure },
        ...(data.fidelity.recovered ? [{ name: "as cut", n: true, of: (r) => value(r, r.before) }] : []), { name: data.stages.rows ? "delivered" : data.fidelity.recovered ? "recovered" : "cut", n: true, of: (r) => value(r, r.after) }],
      data.fidelity.rows, "narrow"), data.fidelity.left_out > 0 && h("p", { class: "muted" }, plural(data.fidelity.left_out, "more output")));
  }
  if (data.notes.length) out.push(h("h2", null, "Notes"), h("ul", { class: "notes" }, data.notes.map((note) => h("li", null, note))));
  const most = Math.max(...data.seconds.map((row) => row[1]), 1e-9);
  out.push(h("h2", null, "Time"), table([{ name: "pass", of: (r) => r[0], key: (r) => r[0] }, { name: "seconds", n: true, of: (r) => r[1].toFixed(r[1] < 1 ? 3 : 1), key: (r) => r[1] },
    { name: "", wide: true, of: (r) => h("div", { class: "secondbar", style: { width: 100 * r[1] / most + "%" } }) }], data.seconds, "narrow"));
  return out;
}

const ORDERS = { network: null, width: (g) => -g.units, "kept share, least first": (g) => g.kept / g.units, "units removed": (g) => -(g.units - g.kept), kind: (g) => g.kind };
const orders = Object.keys(ORDERS).map((name) => [name, name === "network" ? "order of the network" : name]);
const inOrder = (order, query) => {
  const list = data.groups.filter((g) => !query || [named(g), g.kind, ...g.members.map((m) => m[0])].some((text) => text.toLowerCase().includes(query)));
  return ORDERS[order] ? sorted(list, ORDERS[order]) : list;
};
function leftOut() {
  const n = data.groups_in_all - data.groups.length;
  return n > 0 && h("p", { class: "muted" }, "The widest " + data.groups.length.toLocaleString("en") + " of " + data.groups_in_all.toLocaleString("en") + " groups are shown.");
}
function groupViews(draw, extra, key) {
  let order = "network", query = "";
  const holder = h("div");
  const show = () => {
    const list = inOrder(order, query);
    put(holder, list.length ? draw(list) : h("p", { class: "muted" }, "No group matches."));
  };
  show();
  return [h("div", { class: "bar-of-controls" }, searchBox("Search groups and tensors", (text) => { query = text; show(); }, key + "-search"), chooser("Sort by", orders, (value) => { order = value; show(); }), extra && extra(show)), leftOut(), holder];
}
function widths() {
  let own = false;
  return groupViews((list) => widthChart(list.map((group) => ({
    id: "g" + group.id, name: kindly(group, 34), whole: group.units, kept: group.kept, onclick: () => toGraph(group.id),
    tip: named(group) + "\n" + plural(group.units, group.kind) + ", " + group.kept + " kept; " + (group.exact ? "exact" : "inexact") + "\n" + axes(group.members.length + group.more, "tensor "),
  })), own), (show) => [chooser("Bars", [["", "to one scale"], ["own", "share kept"]], (value) => { own = value !== ""; show(); }), legend(["kept", "kept"], ["soft", "removed"])], "widths");
}
function scores() {
  let chosen = data.scores[0];
  const about = h("p", { class: "muted" });
  const explain = () => { about.textContent = "Units of every group by their score under " + chosen.name + (chosen.unit ? ", in " + chosen.unit : "") + ". A threshold is drawn where one parts what is kept from what is removed"
    + (data.scores.length > 1 ? "; with several criteria their mean decides." : "."); };
  explain();
  const tile = (group) => h("div", { class: "tile" },
    h("div", { class: "caption" }, h("span", { class: "muted" }, "g" + group.id), h("button", { type: "button", class: "link", onclick: () => toGraph(group.id) }, kindly(group, 28))),
    histogram(chosen.groups[group.id], chosen.unit));
  const choice = (show) => data.scores.length > 1 && chooser("Criterion", data.scores.map((one, i) => [String(i), one.name]), (value) => { chosen = data.scores[Number(value)]; explain(); show(); });
  const views = groupViews((list) => h("div", { class: "tiles" }, list.filter((group) => chosen.groups[group.id]).map(tile)), choice, "scores");
  return [views[0], about, legend(["kept", "kept"], ["gone", "removed"], ["line", "threshold"]), ...views.slice(1)];
}
function recovery() {
  const found = data.recovery, taught = found.distill && found.distill.scores ? found.distill : null;
  const lesson = taught && [h("h2", null, "Distillation"), h("p", { class: "muted" }, plural(taught.steps, "step") + " of " + taught.planned + " on " + plural(taught.samples, "sample") + " in "
      + figure(taught.seconds) + " s, " + taught.ended + ". " + (taught.used ? "Best at step " + taught.best_step + "." : "It did not help, and the weights stay as they were.")),
    table([{ name: "step", n: true, of: (r) => String(r[0]) }, { name: "divergence on held-out samples", n: true, of: (r) => figure(r[1]) }], taught.scores)];
  if (!found.layers) return lesson;
  const layers = found.layers.map((layer) => ({ ...layer, tip: layer.layer + " (" + layer.op + ")\nerror " + figure(layer.before) + " → " + figure(layer.after)
    + "\n" + (layer.kept ? "fitted" + (layer.ridge === null ? "" : ", ridge " + figure(layer.ridge)) : "left as cut: no gain on held-out samples") }));
  return [h("h2", null, "Error of each layer"), h("p", { class: "muted" }, "Squared error on held-out samples as a share of the outputs' variance, as cut and after the fit; " + plural(found.samples, "sample") + ", mode " + found.mode + "."),
    found.fitted === false && h("p", null, "Recovery did not help, and the plain cut was written."),
    legend(["ring", "as cut"], ["dot", "after"]), dumbbells(layers), found.left_out > 0 && h("p", { class: "muted" }, plural(found.left_out, "more layer")),
    found.left.length > 0 && [h("h2", null, "Not fittable"), table([{ name: "layer", of: (r) => h("code", null, r[0]) }, { name: "why", of: (r) => r[1] }], found.left)], lesson];
}
function frozen() {
  const holder = h("div");
  const columns = (query) => [{ name: "tensor", of: (e) => h("code", null, marked(e[0], query)) }, { name: "axis", n: true, of: (e) => String(e[1]) }, { name: "indices", n: true, of: (e) => String(e[2]) }, { name: "frozen at", of: (e) => h("code", null, marked(e[3], query)) }];
  function show(query) {
    const hits = data.frozen.map((one) => {
      const whole = !query || (one.reason + " " + one.op).toLowerCase().includes(query);
      return [one, whole ? one.entries : one.entries.filter((e) => (e[0] + " " + e[3]).toLowerCase().includes(query)), whole];
    }).filter(([, entries, whole]) => whole || entries.length);
    put(holder, hits.map(([one, entries, whole]) => {
      const inner = h("div");
      const details = h("details", { ontoggle: () => { if (details.open && !inner.firstChild) inner.append(table(columns(query), entries), one.more > 0 ? h("p", { class: "muted" }, axes(one.more, "more ") + " (in the plan file)") : ""); } },
        h("summary", null, h("span", null, marked(one.reason, query), one.op && !one.reason.includes(one.op) && h("span", { class: "muted" }, " · " + one.op)), h("span", { class: "muted" }, (whole ? one.axes : entries.length) + (one.axes === 1 ? " axis" : " axes"))), inner);
      details.open = query !== "" && !whole;
      return details;
    }), hits.length === 0 && h("p", { class: "muted" }, "Nothing matches."));
  }
  show("");
  return [h("div", { class: "bar-of-controls" }, searchBox("Search reasons, tensors, nodes", show, "frozen-search"), h("span", { class: "muted" }, axes(data.frozen.reduce((n, one) => n + one.axes, 0), "tensor ") + " left alone, by reason")), holder];
}
function recipe() {
  const text = data.recipe.command;
  const copy = h("button", { type: "button", onclick: () => navigator.clipboard.writeText(text).then(() => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); }, () => getSelection().selectAllChildren(command)) }, "Copy");
  const command = h("pre", { id: "command" }, text);
  return [h("h2", null, "The command that repeats this run"), command, copy,
    h("h2", null, "The same as a recipe"), h("p", { class: "muted" }, "Saved as recipe.yaml, it repeats the run on this or on another model: graphprune run MODEL --recipe recipe.yaml"), h("pre", { id: "yaml" }, data.recipe.yaml),
    h("h2", null, "Options in force"), table([{ name: "option", of: (r) => r[0] }, { name: "value", of: (r) => h("code", null, r[1]) }], data.recipe.options, "narrow"),
    h("h2", null, "Source"), table([{ name: "", of: (r) => r[0] }, { name: "", of: (r) => h("code", null, r[1]) }], [["file", data.model.path || "in memory"], ["sha256", data.model.sha256 || "–"], ["graphprune", data.model.version]], "narrow")];
}

// -- the page
const PANELS = [["summary", "Summary", summary], ["widths", "Widths", widths], ["scores", "Scores", scores],
  ...(data.recovery.layers || data.recovery.distill ? [["recovery", "Recovery", recovery]] : []), ["frozen", "Frozen", frozen],
  ["graph", "Coupling graph", () => { graph = graphPanel(data, data.groups); return [graph.panel]; }], ["recipe", "Recipe", recipe]];
const tabs = document.getElementById("tabs"), panels = document.getElementById("panels");
function open(id) {
  for (const [name, , build] of PANELS) {
    const on = name === id, panel = document.getElementById(name), tab = document.getElementById("tab-" + name);
    // A part is drawn when it is first looked at.
    if (on && !panel.firstChild) fill(panel, null, build());
    panel.hidden = !on;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    if (on) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  tip.hidden = true;
  if (id === "graph") graph.shown();
}
function go(id) {
  open(id);
  // Every part is read from its beginning, with the tabs in sight.
  const top = panels.offsetTop - tabs.offsetHeight;
  if (scrollY > top) scrollTo(0, top);
  // No element has such a name, so that the browser scrolls to none.
  history.replaceState(null, "", "#/" + id);
}
function toGraph(id) { go("graph"); graph.pickGroup(id); }
for (const [name, title] of PANELS) {
  tabs.append(h("button", { type: "button", role: "tab", id: "tab-" + name, "aria-controls": name, onclick: () => go(name) }, title));
  panels.append(h("section", { id: name, role: "tabpanel", "aria-labelledby": "tab-" + name, hidden: true }));
}
tabs.addEventListener("keydown", (event) => {
  const at = PANELS.findIndex(([name]) => "tab-" + name === document.activeElement.id), n = PANELS.length;
  const to = { ArrowRight: (at + 1) % n, ArrowLeft: (at + n - 1) % n, Home: 0, End: n - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  go(PANELS[to][0]);
  document.getElementById("tab-" + PANELS[to][0]).focus();
});
document.getElementById("name").textContent = data.model.name;
document.getElementById("provenance").textContent = [data.model.date, "graphprune " + data.model.version, data.model.sha256 ? "sha256 " + data.model.sha256.slice(0, 12) : ""].filter(Boolean).join(" · ");

const theme = document.getElementById("theme"), prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark") + " colours"); };
theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; label(); });
prefersDark.addEventListener("change", label);
label();
addEventListener("beforeprint", () => { for (const [name, , build] of PANELS) { const panel = document.getElementById(name); if (!panel.firstChild) fill(panel, null, build()); } });
const asked = () => (PANELS.find(([name]) => "#/" + name === location.hash) || PANELS[0])[0];
addEventListener("hashchange", () => open(asked()));
open(asked());
