"use strict";
// Asks for one picture after the other, draws it twice, and keeps the times of the last ones.

const KEPT = 60; // pictures whose times count
const one = (css, within = document) => within.querySelector(css);
const sides = [one("#source"), one("#cut")];
const colours = () => sides.map((side) => getComputedStyle(side).getPropertyValue("--own").trim());
const state = { number: 0, playing: true, busy: false, shown: null, image: null, times: [], matched: [], about: null, wanted: null };

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function short(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return (value / size).toPrecision(3) + " " + unit;
  }
  return value + " ";
}

function fail(text) {
  one("#error").textContent = text;
  one("#error").hidden = false;
  play(false);
}

async function ask(address) {
  const answer = await fetch(address);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function least() {
  return Number(one("#score").value);
}

function draw() {
  if (!state.shown) return;
  const own = colours();
  sides.forEach((side, n) => {
    const canvas = one("canvas", side), image = state.image;
    // Small pictures are drawn larger, so that lines and letters stay fine.
    const scale = Math.max(1, Math.round(1280 / image.naturalWidth));
    canvas.width = image.naturalWidth * scale;
    canvas.height = image.naturalHeight * scale;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const unit = canvas.width / 640;
    pen.lineWidth = 2 * unit;
    pen.font = `600 ${13 * unit}px sans-serif`;
    const boxes = state.shown.sides[n].boxes.filter((box) => box[5] >= least());
    for (const [left, top, right, bottom, label, score] of boxes) {
      const x = left * canvas.width, y = top * canvas.height;
      pen.strokeStyle = own[n];
      pen.strokeRect(x, y, (right - left) * canvas.width, (bottom - top) * canvas.height);
      const text = `${state.about.names[label] ?? "class " + label} ${score.toFixed(2)}`;
      const wide = pen.measureText(text).width + 8 * unit, high = 18 * unit;
      const from = Math.min(x - unit, canvas.width - wide), up = y - high >= 0 ? y - high : bottom * canvas.height;
      pen.fillStyle = own[n];
      pen.fillRect(from, up, wide, high);
      pen.fillStyle = getComputedStyle(document.body).backgroundColor;
      pen.fillText(text, from + 4 * unit, up + 13.5 * unit);
    }
    one(".found", side).textContent = boxes.length;
    one(".unit", side).textContent = boxes.length === 1 ? "box" : "boxes";
  });
  figures();
}

function figures() {
  const ms = [0, 1].map((n) => median(state.times.map((pair) => pair[n])));
  sides.forEach((side, n) => {
    one(".ms", side).textContent = ms[n].toFixed(ms[n] < 10 ? 2 : 1);
    one(".fps", side).textContent = Math.round(1000 / ms[n]);
    one(".bar div", side).style.width = `${(100 * ms[n]) / Math.max(...ms)}%`;
  });
  one("#faster").textContent = (ms[0] / ms[1]).toFixed(2);
  const pairs = state.matched.reduce((sum, [p]) => sum + p, 0), all = state.matched.reduce((sum, [, a]) => sum + a, 0);
  one("#agree").textContent = all ? `${Math.round((200 * pairs) / all)} %` : "–";
  one("#number").textContent = `${state.shown.number + 1}${state.shown.count ? " of " + state.shown.count : ""}`;
  if (state.shown.count) one("#where").max = state.shown.count - 1;
  one("#where").value = state.shown.number;
  document.body.dataset.number = state.shown.number;
}

async function show(number) {
  if (state.busy) {
    state.wanted = number;
    return;
  }
  state.busy = true;
  try {
    let found = await ask(`picture?n=${number}&score=${least()}`);
    if (found.end) found = await ask(`picture?n=0&score=${least()}`);
    const image = new Image();
    image.src = found.picture;
    await image.decode();
    // A picture that is only looked at again, at another score, counts once.
    if (state.shown && state.shown.number === found.number) {
      state.times.pop();
      state.matched.pop();
    }
    Object.assign(state, { shown: found, image, number: found.number });
    state.times = [...state.times, found.sides.map((side) => side.ms)].slice(-KEPT);
    const seen = found.sides.reduce((sum, side) => sum + side.boxes.filter((box) => box[5] >= least()).length, 0);
    state.matched = [...state.matched, [found.pairs, seen]].slice(-KEPT);
    draw();
    one("#error").hidden = true;
  } catch (error) {
    fail(error instanceof TypeError ? "the demo has ended: start it again and reload" : error.message);
  }
  state.busy = false;
  if (state.wanted !== null) {
    const next = state.wanted;
    state.wanted = null;
    await show(next);
  }
}

async function run() {
  while (state.playing) {
    const begun = performance.now();
    await show(state.shown ? state.number + 1 : 0);
    const rest = 1000 / state.about.rate - (performance.now() - begun);
    await new Promise((done) => setTimeout(done, Math.max(rest, 0)));
  }
  state.running = false;
}

function play(playing) {
  state.playing = playing;
  one("#play").textContent = playing ? "Pause" : "Play";
  if (playing && !state.running) {
    state.running = true;
    run();
  }
}

function step(by) {
  play(false);
  show(Math.max(0, state.number + by));
}

one("#play").addEventListener("click", () => play(!state.playing));
one("#back").addEventListener("click", () => step(-1));
one("#step").addEventListener("click", () => step(1));
one("#where").addEventListener("input", (event) => { play(false); show(Number(event.target.value)); });
one("#score").addEventListener("input", () => {
  one("#least").textContent = least().toFixed(2);
  state.matched = []; // pairs were counted at the score before
  draw();
  if (!state.playing) show(state.number);
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, button")) return;
  if (event.key === " ") play(!state.playing);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else return;
  event.preventDefault();
});

(async () => {
  try {
    state.about = await ask("about");
  } catch (error) {
    fail(error.message);
    return;
  }
  const [source] = state.about.models;
  state.about.models.forEach((model, n) => {
    one(".file", sides[n]).textContent = model.name;
    const share = (what) => (n && source[what] ? ` (${Math.round((100 * model[what]) / source[what])} %)` : "");
    const parts = [["macs", "MACs"], ["params", "parameters"], ["bytes", "B"]].filter(([what]) => model[what] !== undefined);
    one(".costs", sides[n]).textContent = parts.map(([what, unit]) => `${short(model[what])}${what === "bytes" ? "" : " "}${unit}`.replace("  ", " ") + share(what)).join(" · ");
  });
  const threads = state.about.threads === 1 ? "one thread" : `${state.about.threads} threads`;
  one("#words").textContent = `${state.about.pictures}. Fed so: ${state.about.words}. Times are of the models alone, in ${state.about.runtime} on ${threads}, `
    + `in turns on the same pictures: the median of the last ${KEPT}. Boxes of one class that overlap by half or more are the same.`
    + (state.about.made_here ? " The cut was made here, to half of the MACs, and fitted on these pictures." : "");
  play(true);
})();
