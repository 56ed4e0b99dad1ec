// The coupling graph: layers as boxes in the order of execution, and the groups whose widths run between them.
const BOX = { width: 200, height: 62 };

function graphPanel(data, groups) {
  const graph = data.graph, byId = new Map(groups.map((group) => [group.id, group]));
  const world = s("g");
  const drawing = s("svg", { class: "drawing", tabindex: "0", role: "group", "aria-label": "Coupling graph. Arrow keys move, plus and minus zoom, 0 fits." }, world);
  const map = s("svg", { class: "map", viewBox: [-40, -40, graph.width + 80, graph.height + 80].join(" "), preserveAspectRatio: "none", "aria-hidden": "true" });
  const stage = h("div", { class: "stage" }, drawing, map);

  // -- what is drawn
  const paths = graph.edges.map(([a, b, ...bends]) => s("path", { d: curve(graph.boxes[a], graph.boxes[b], bends) }));
  const boxes = graph.boxes.map((box, i) => drawBox(box, i));
  world.append(...paths, ...boxes);
  const view = s("rect", { class: "view" });
  const spots = graph.boxes.map((box) => s("rect", { class: "spot", x: box.x - BOX.width / 2, y: box.y - BOX.height / 2, width: BOX.width, height: BOX.height }));
  map.append(...spots, view);

  function drawBox(box, number) {
    const node = s("g", { class: "box " + box.kind, "data-box": number, transform: "translate(" + (box.x - BOX.width / 2) + " " + (box.y - BOX.height / 2) + ")",
      onclick: () => { if (!moved) pickBox(number); } },
      s("rect", { class: "frame", width: BOX.width, height: BOX.height, rx: 4 }),
      s("text", { x: 10, y: 18 }, tail(box.name, 24)),
      s("text", { x: 10, y: 33, class: "op" }, head(box.kind === "input" || box.kind === "output" ? box.kind : box.ops.join(" · "), 28)));
    const shown = box.out.map((id) => byId.get(id)).filter(Boolean), room = (BOX.width - 20) / Math.max(1, Math.min(2, shown.length));
    shown.slice(0, 2).forEach((group, i) => node.append(s("g", { class: "pill", "data-group": group.id, transform: "translate(" + (10 + i * room) + " 41)",
      onclick: (event) => { if (!moved) { event.stopPropagation(); pickGroup(group.id); } } },
      s("rect", { width: room - 6, height: 16, "fill-opacity": 0 }),
      s("rect", { class: "whole", width: room - 6, height: 3 }), s("rect", { class: "kept", width: (room - 6) * group.kept / group.units, height: 3 }),
      s("text", { y: 14 }, "g" + group.id + "  " + group.units + " → " + group.kept + (i === 1 && shown.length > 2 ? "  +" + (shown.length - 2) : "")))));
    withTip(node, () => [box.name, box.ops.join(" · ") || box.kind].concat(shown.map((g) => "g" + g.id + ": " + plural(g.units, g.kind) + ", " + g.kept + " kept")).join("\n"));
    return node;
  }
  function curve(a, b, bends) {
    // Beside boxes an edge runs straight; it bends between the ranks only.
    const half = BOX.height / 2;
    const points = [[a.x, a.y + half], ...bends.flatMap(([x, y]) => [[x, y - half], [x, y + half]]), [b.x, b.y - half]];
    let d = "M" + points[0].join(" ");
    for (let i = 1; i < points.length; i++) {
      const [x0, y0] = points[i - 1], [x1, y1] = points[i], middle = (y0 + y1) / 2;
      d += x0 === x1 ? "L" + x1 + " " + y1 : "C" + [x0, middle, x1, middle, x1, y1].join(" ");
    }
    return d;
  }

  // -- where one looks
  let at = { x: 0, y: 0, k: 1 }, moved = false;
  function size() { return [stage.clientWidth || 800, stage.clientHeight || 600]; }
  function place() {
    world.setAttribute("transform", "translate(" + at.x + " " + at.y + ") scale(" + at.k + ")");
    const [w, t] = size();
    fill(view, { x: -at.x / at.k, y: -at.y / at.k, width: w / at.k, height: t / at.k }, []);
    tip.hidden = true;
  }
  function zoom(by, x, y) {
    const [w, t] = size(), cx = x === undefined ? w / 2 : x, cy = y === undefined ? t / 2 : y;
    const k = Math.min(4, Math.max(0.02, at.k * by));
    at = { x: cx - (cx - at.x) * k / at.k, y: cy - (cy - at.y) * k / at.k, k };
    place();
  }
  function show(left, top, right, bottom, most, least) {
    const [w, t] = size(), k = Math.max(least, Math.min(most, (w - 60) / (right - left), (t - 60) / (bottom - top)));
    at = { k, x: w / 2 - k * (left + right) / 2, y: (bottom - top) * k > t - 60 ? 30 - k * top : t / 2 - k * (top + bottom) / 2 };
    place();
  }
  const fit = () => show(0, 0, graph.width, graph.height, 1.2, 0.02);
  // At first as large as the width allows, from the top, the first box in the middle if it does not fit.
  function start() {
    const [w] = size(), k = Math.max(0.72, Math.min(1, (w - 100) / graph.width)), whole = graph.width * k <= w;
    at = { k, x: w / 2 - k * (whole || !graph.boxes.length ? graph.width / 2 : graph.boxes[0].x), y: 30 };
    place();
  }
  function lookAt(numbers) {
    const list = numbers.map((i) => graph.boxes[i]).filter(Boolean);
    if (!list.length) return;
    const xs = list.map((b) => b.x), ys = list.map((b) => b.y), half = BOX.width / 2;
    show(Math.min(...xs) - half, Math.min(...ys) - 40, Math.max(...xs) + half, Math.max(...ys) + 40, 1, 0.5);
  }
  let held = null;
  drawing.addEventListener("pointerdown", (event) => { held = [event.clientX - at.x, event.clientY - at.y, event.clientX, event.clientY]; moved = false; });
  drawing.addEventListener("pointermove", (event) => {
    if (!held || !event.buttons) return;
    // A click that trembles is still a click.
    if (!moved && Math.hypot(event.clientX - held[2], event.clientY - held[3]) < 4) return;
    if (!moved) drawing.setPointerCapture(event.pointerId);
    moved = true;
    drawing.classList.add("dragging");
    at = { ...at, x: event.clientX - held[0], y: event.clientY - held[1] };
    place();
  });
  for (const name of ["pointerup", "pointercancel"]) drawing.addEventListener(name, () => { held = null; drawing.classList.remove("dragging"); });
  drawing.addEventListener("click", (event) => { if (!moved && event.target === drawing) clear(); });
  drawing.addEventListener("wheel", (event) => {
    const box = drawing.getBoundingClientRect(), zooms = event.ctrlKey || event.metaKey;
    // At the end of the drawing the page scrolls on.
    if (!zooms && !event.shiftKey && (event.deltaY < 0 ? at.y >= 30 : event.deltaY > 0 && at.y + at.k * graph.height <= box.height - 30)) return;
    event.preventDefault();
    // As in maps of networks elsewhere: the wheel scrolls, with Ctrl (or a pinch) it zooms.
    if (zooms) zoom(Math.exp(-event.deltaY * 0.004), event.clientX - box.left, event.clientY - box.top);
    else { at = { ...at, x: at.x - (event.shiftKey ? event.deltaY : event.deltaX), y: at.y - (event.shiftKey ? 0 : event.deltaY) }; place(); }
  }, { passive: false });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) at = { ...at, x: at.x + step[0], y: at.y + step[1] };
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else if (event.key === "Escape") clear();
    else return;
    event.preventDefault();
    place();
  });
  function jump(event) {
    const box = map.getBoundingClientRect(), [w, t] = size();
    const x = (event.clientX - box.left) / box.width * (graph.width + 80) - 40, y = (event.clientY - box.top) / box.height * (graph.height + 80) - 40;
    at = { ...at, x: w / 2 - at.k * x, y: t / 2 - at.k * y };
    place();
  }
  map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); jump(event); });
  map.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });
  const hint = h("div", { class: "hint" }, "drag or scroll to move · Ctrl + scroll to zoom · click a width or a layer");
  for (const name of ["pointerdown", "wheel"]) drawing.addEventListener(name, () => { hint.hidden = true; }, { once: true, passive: true });
  stage.append(h("div", { class: "zoom" },
    h("button", { type: "button", "aria-label": "Zoom in", onclick: () => zoom(1.25) }, "+"), h("button", { type: "button", "aria-label": "Zoom out", onclick: () => zoom(0.8) }, "−"),
    h("button", { type: "button", onclick: fit }, "Fit")),
    hint);

  // -- what is picked
  const detail = h("div", { class: "detail", "aria-live": "polite" });
  const list = h("div", { class: "list", role: "group", "aria-label": "Groups" });
  const buttons = new Map(groups.map((group) => [group.id, h("button", { type: "button", "aria-pressed": "false", "data-id": group.id, onclick: () => pickGroup(group.id) },
    h("span", null, "g" + group.id), h("span", null, kindly(group, 25)), h("span", null, group.units + " → " + group.kept))]));
  list.append(...buttons.values());

  function pick(numbers, edges) {
    const on = new Set(numbers);
    drawing.classList.toggle("picked", on.size > 0);
    boxes.forEach((box, i) => { box.classList.toggle("on", on.has(i)); box.classList.remove("chosen"); spots[i].classList.toggle("on", on.has(i)); });
    paths.forEach((path, i) => path.classList.toggle("on", edges.has(i)));
  }
  function press(ids) { for (const [id, button] of buttons) button.setAttribute("aria-pressed", String(ids.includes(id))); }
  function clear() { pick([], new Set()); press([]); idle(); }
  function idle() {
    put(detail, h("p", { class: "muted" }, "Pick a group to see the tensors that it ties together, or a layer to see its groups."));
  }
  // Within the list only: the page stays where it is.
  function reveal(button) {
    const top = button.offsetTop - list.offsetTop;
    if (top < list.scrollTop || top + button.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  }
  function pickGroup(id) {
    const group = byId.get(id);
    if (!group) return;
    // Joins whose output has the width stand between the layers that share it.
    const carrying = graph.boxes.map((box, i) => (box.out.includes(id) ? i : -1)).filter((i) => i >= 0);
    const numbers = [...new Set([...group.boxes, ...carrying])], inside = new Set(numbers), carriers = new Set(carrying);
    pick(numbers, new Set(graph.edges.map(([a, b], i) => (carriers.has(a) && inside.has(b) ? i : -1)).filter((i) => i >= 0)));
    press([id]);
    reveal(buttons.get(id));
    const seen = numbers.map((i) => boxes[i].getBoundingClientRect()), frame = stage.getBoundingClientRect();
    // The view stays where it is while any of the group is in sight.
    if (!seen.some((box) => box.right > frame.left && box.left < frame.right && box.bottom > frame.top && box.top < frame.bottom)) lookAt(numbers);
    put(detail,
      h("h3", null, "Group " + group.id + " · " + group.name),
      h("p", null, plural(group.units, group.kind) + ", " + group.kept + " kept (" + percent(group.kept / group.units) + "); " + (group.exact ? "exact" : "inexact: a normalisation looks across them")),
      h("p", null, h("button", { type: "button", onclick: () => lookAt(numbers) }, "Show whole group"), " ", h("button", { type: "button", class: "quiet", onclick: clear }, "Clear")),
      h("ul", { class: "members" }, group.members.map(([name, axis, before, after]) => h("li", null, h("span", { class: "mono" }, name), h("br"),
        h("span", { class: "muted" }, "axis " + axis + (before ? " · [" + before.join(", ") + "] → [" + after.join(", ") + "]" : " · kept whole"))))),
      group.more > 0 && h("p", { class: "muted" }, plural(group.more, "more member") + " (in the plan file)"),
      !numbers.length && h("p", { class: "muted" }, "None of its layers is in the drawing."));
  }
  function pickBox(number) {
    const box = graph.boxes[number], ids = [...new Set([...box.out, ...box.groups])];
    pick([number], new Set(graph.edges.map(([a, b], i) => (a === number || b === number ? i : -1)).filter((i) => i >= 0)));
    boxes[number].classList.add("chosen");
    press(ids);
    const chip = (id) => h("li", null, h("button", { type: "button", class: "link", onclick: () => pickGroup(id) }, "g" + id + (byId.has(id) ? " · " + byId.get(id).name + " · " + byId.get(id).units + " → " + byId.get(id).kept : "")));
    put(detail,
      h("h3", null, box.name), h("p", { class: "muted" }, [box.ops.join(" · ") || box.kind, box.node && box.node !== box.name ? box.node : ""].filter(Boolean).join(" — ")),
      h("p", null, h("button", { type: "button", class: "quiet", onclick: clear }, "Clear")),
      box.out.length > 0 && [h("div", { class: "muted" }, "width of its output"), h("ul", null, box.out.map(chip))],
      box.groups.length > 0 && [h("div", { class: "muted" }, "groups that cut its tensors"), h("ul", null, box.groups.map(chip))],
      ids.length === 0 && h("p", { class: "muted" }, "Nothing of it can be removed."),
      box.frozen.length > 0 && [h("div", { class: "muted" }, "what is frozen of it"), h("ul", null, box.frozen.map((reason) => h("li", null, reason)))],
      box.tensors.length > 0 && [h("div", { class: "muted" }, "tensors"), h("ul", null, box.tensors.map((name) => h("li", { class: "mono" }, name)))]);
  }
  function search(query) {
    let first = -1;
    graph.boxes.forEach((box, i) => {
      const hit = query !== "" && [box.name, box.node, ...box.ops, ...box.tensors].some((text) => text.toLowerCase().includes(query));
      boxes[i].classList.toggle("found", hit);
      spots[i].classList.toggle("on", hit);
      if (hit && first < 0) first = i;
    });
    for (const [id, button] of buttons) {
      const group = byId.get(id);
      button.hidden = query !== "" && !["g" + id, group.name, group.kind, ...group.members.map((m) => m[0])].some((text) => text.toLowerCase().includes(query));
    }
    return first;
  }
  const box = searchBox("Search layers, tensors, groups", search, "graph-search");
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const first = search(box.value.trim().toLowerCase());
    if (first >= 0) { lookAt([first]); pickBox(first); }
  });

  idle();
  const left = graph.boxes_in_all - graph.boxes.length;
  const panel = h("div", null,
    h("p", { class: "muted small bar-of-controls" }, "Layers in the order of execution. The bar in a box is the width of what it hands on, and how much of it is kept; layers of one group are cut together."
      + (left > 0 ? " The first " + graph.boxes.length.toLocaleString("en") + " of " + graph.boxes_in_all.toLocaleString("en") + " layers are drawn." : "")
      + (left <= 0 && graph.edges_left_out > 0 ? " " + plural(graph.edges_left_out, "edge") + " not drawn." : "")
      + (data.groups_in_all > groups.length ? " The widest " + groups.length.toLocaleString("en") + " of " + data.groups_in_all.toLocaleString("en") + " groups are listed." : "")),
    h("div", { class: "workbench" }, stage, h("div", { class: "side" }, box, list, detail)));
  let ready = false;
  return { panel, pickGroup, shown() { if (!ready) { ready = true; start(); } else place(); } };
}
