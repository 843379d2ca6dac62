"use strict";
// The page of `weakseg annotate`. A mask is one byte a pixel: the number of a class, or 255 for no label.
// It is sent to the server at the end of each stroke; the server refuses it if somebody else has written meanwhile.

const NONE = 255, UNDOS = 100;
const $ = (id) => document.getElementById(id);
const view = $("view"), ctx = view.getContext("2d");

let state = null;        // what the server told: classes, images, model, training
let at = -1;             // which image is shown
let page = null;         // that image: name, bitmap, mask, version and so on
let loads = 0;           // of images, to know which load is the last one
let value = 0;           // the class that is drawn, or NONE for the eraser
let brush = 7;           // its diameter in pixels of the image
let scale = 1, left = 0, top_ = 0;  // where the image lies, in CSS pixels
let fitted = true;       // whether all of it is to be seen, whatever the window's size
let mark = null;         // of the pointer or the arrow keys, in pixels of the image
let lastPoint = null;    // the last point that was set with a key
let suggesting = false;

async function api(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("weakseg annotate does not answer: is it still running?"), {status: 0});
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(told.error || answer.statusText), {status: answer.status});
  }
  return answer;
}

const json = async (path, body) => (await api(path, body)).json();
const of = (what, name) => `${what}?name=${encodeURIComponent(name)}`;

function say(text, bad = false, way = null, act = null) {
  if (page?.unsaved && !page.saving && !way) return;  // that it is not saved stays said, with the way out
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
  $("way").hidden = !way;
  $("way").textContent = way || "";
  $("way").onclick = act;
}

// Masks ------------------------------------------------------------------------------------------------------------

function fromRuns(runs, size) {
  const mask = new Uint8Array(size);
  let start = 0;
  for (let i = 0; i < runs.length; i += 2) {
    mask.fill(runs[i], start, start + runs[i + 1]);
    start += runs[i + 1];
  }
  return mask;
}

function toRuns(mask) {
  const runs = [];
  let start = 0;
  for (let i = 1; i <= mask.length; i++) {
    if (i === mask.length || mask[i] !== mask[start]) {
      runs.push(mask[start], i - start);
      start = i;
    }
  }
  return runs;
}

function colored(mask, width, box) {  // the part of a mask in `box` as a picture, transparent where nothing is drawn
  const picture = new ImageData(box.w, box.h), data = picture.data;
  for (let y = 0, i = 0; y < box.h; y++) {
    for (let x = 0; x < box.w; x++, i += 4) {
      const label = mask[(box.y + y) * width + box.x + x];
      if (label === NONE) continue;
      const [r, g, b] = state.classes[label].color;
      data[i] = r; data[i + 1] = g; data[i + 2] = b; data[i + 3] = 255;
    }
  }
  return picture;
}

function layer(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

function repaint(box) {
  page.labels.getContext("2d").putImageData(colored(page.mask, page.width, box), box.x, box.y);
  draw();
}

const whole = () => ({x: 0, y: 0, w: page.width, h: page.height});

function join(a, b) {
  if (!a) return b;
  const x = Math.min(a.x, b.x), y = Math.min(a.y, b.y);
  return {x, y, w: Math.max(a.x + a.w, b.x + b.w) - x, h: Math.max(a.y + a.h, b.y + b.h) - y};
}

function cut(mask, box) {
  const part = new Uint8Array(box.w * box.h);
  for (let y = 0; y < box.h; y++) {
    const from = (box.y + y) * page.width + box.x;
    part.set(mask.subarray(from, from + box.w), y * box.w);
  }
  return part;
}

function paste(part, box) {
  for (let y = 0; y < box.h; y++) {
    page.mask.set(part.subarray(y * box.w, (y + 1) * box.w), (box.y + y) * page.width + box.x);
  }
  repaint(box);
}

// All pixels whose centres are within the brush around the line between two pixels' centres.
function line(from, to, label) {
  const [x0, y0, x1, y1] = [from.x, from.y, to.x, to.y].map((number) => Math.floor(number) + .5);
  const r = brush / 2, dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
  const x = Math.max(0, Math.floor(Math.min(x0, x1) - r)), y = Math.max(0, Math.floor(Math.min(y0, y1) - r));
  const w = Math.min(page.width, Math.ceil(Math.max(x0, x1) + r)) - x;
  const h = Math.min(page.height, Math.ceil(Math.max(y0, y1) + r)) - y;
  if (w <= 0 || h <= 0) return null;
  for (let row = y; row < y + h; row++) {
    for (let column = x; column < x + w; column++) {
      const px = column + .5 - x0, py = row + .5 - y0;
      const t = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0;
      if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= r * r) page.mask[row * page.width + column] = label;
    }
  }
  const box = {x, y, w, h};
  repaint(box);
  return box;
}

// Strokes ----------------------------------------------------------------------------------------------------------

let stroke = null;  // the one that is being drawn

function begin(point) {
  if (!page || page.closed || !page.mask) return;
  stroke = {before: page.mask.slice(), box: line(point, point, value), last: point};
}

function go(point) {
  const box = line(stroke.last, point, value);
  stroke.last = point;
  if (box) stroke.box = join(stroke.box, box);
}

function end() {
  const {before, box} = stroke;
  stroke = null;
  if (!box) return;
  page.undo.push({box, before: cut(before, box), after: cut(page.mask, box)});
  if (page.undo.length > UNDOS) page.undo.shift();
  page.redo = [];
  save(page);
}

function cancel() {
  page.mask = stroke.before;
  stroke = null;
  repaint(whole());
}

function again(from, to, which) {
  if (!page || page.closed || stroke || !page[from].length) return;
  const change = page[from].pop();
  page[to].push(change);
  paste(change[which], change.box);
  save(page);
}

// Saving: one request at a time, each with the version that the last one gave. --------------------------------------

function save(one) {
  one.unsaved = true;
  tools();
  if (!one.closed) one.saving ??= write(one).finally(() => { one.saving = null; tools(); });
}

async function write(one) {
  try {
    while (one.unsaved) {
      one.unsaved = false;
      const mask = stroke && one === page ? stroke.before : one.mask;  // what is begun may be taken back
      const answer = await json(of("mask", one.name), {version: one.version, runs: toRuns(mask)});
      one.version = answer.version;
    }
    const image = state.images[one.at];
    image.labelled = one.version !== "none";
    say("saved");
  } catch (error) {
    one.unsaved = true;
    if (error.status === 409) {
      one.closed = true;
      say(error.message, true, "load the other version", () => { one.unsaved = false; load(one.at); });
    } else {
      say(`not saved: ${error.message}`, true, "try again", () => save(one));
    }
  }
}

async function settled() {  // whether one may leave the image
  do {
    if (stroke) end();
    await page?.saving;
  } while (stroke || page?.saving);  // one was begun meanwhile
  return !page?.unsaved;
}

addEventListener("beforeunload", (event) => { if (stroke || page?.unsaved || page?.saving) event.preventDefault(); });

// Images -----------------------------------------------------------------------------------------------------------

async function load(number) {
  if (!(await settled())) return;
  if (page) page.closed = true;  // a stroke on it would end on the next image
  const ticket = ++loads, name = state.images[number].name;
  view.dataset.state = "loading";
  say("loading");
  const next = {name, at: number, undo: [], redo: [], closed: true, unsaved: false, saving: null};
  try {
    const picture = await api(of("image", name));
    next.bitmap = await createImageBitmap(await picture.blob());
    next.width = next.bitmap.width;
    next.height = next.bitmap.height;
    const told = await json(of("mask", name));
    next.version = told.version;
    next.mask = fromRuns(told.runs, next.width * next.height);
    next.closed = false;
  } catch (error) {
    next.error = error.message;
  }
  if (ticket !== loads) return;  // another one was asked for meanwhile
  page = next;
  at = number;
  lastPoint = mark = null;
  try {
    history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  } catch { /* Safari allows a hundred of them in half a minute: a held N is faster */ }
  if (page.mask) {
    page.labels = layer(page.width, page.height);
    fit();
    repaint(whole());
  } else {
    fit();
  }
  say(page.error || "", Boolean(page.error));
  tools();
  predict();
}

function tools() {
  if (!page) return;
  const image = state.images[at], count = state.images.filter((one) => one.done).length;
  $("name").textContent = image.name;
  $("count").textContent = `${at + 1}/${state.images.length}, ${count} done`;
  $("done").checked = image.done;
  $("back").disabled = at === 0;
  $("next").disabled = at === state.images.length - 1;
  $("undo").disabled = page.closed || !page.undo.length;
  $("redo").disabled = page.closed || !page.redo.length;
  $("prediction").disabled = !state.model;
  $("predictionTool").hidden = !state.model && state.training === null;
  $("training").textContent = state.training ?? "";
  view.classList.toggle("closed", page.closed);
  view.dataset.state = page.saving || page.unsaved ? "saving" : page.closed ? "closed" : "ready";
}

const step = (by) => { if (state.images[at + by]) load(at + by); };

async function markDone() {
  const image = state.images[at], done = !image.done;
  if (!(await settled())) return tools();
  try {
    image.done = (await json(of("done", image.name), {done})).done;
    say(image.done ? "done" : "not done");
  } catch (error) {
    say(`not marked: ${error.message}`, true);
  }
  tools();
  news();
}

async function suggest() {
  if (suggesting) return;
  suggesting = true;
  const from = page;
  try {
    for (;;) {
      const told = await json("suggestion");
      if (told.name === null && told.scored < told.of) {
        say(`looking for the image to label next: ${told.scored} of ${told.of}`);
        await new Promise((resolve) => setTimeout(resolve, 700));
        continue;
      }
      if (told.name === null) {
        say("every image has labels, or is done");
      } else if (page === from && !stroke) {  // nobody is taken away from what she has begun meanwhile
        const why = told.of ? `the model is least certain of this one, of ${told.of}` : "the next one without labels";
        await load(state.images.findIndex((image) => image.name === told.name));
        if (page?.name === told.name && !page.error) say(why);
      } else {
        say(`to label next: ${told.name}`);
      }
      break;
    }
  } catch (error) {
    say(error.message, true);
  }
  suggesting = false;
}

// The model --------------------------------------------------------------------------------------------------------

async function predict() {
  const one = page;
  if (!$("prediction").checked || !state.model || !one?.bitmap) return draw();
  if (one.predicted === state.model || one.asking) return draw();
  one.asking = true;
  try {
    for (;;) {
      const model = state.model, told = await json(of("prediction", one.name));
      if (!told.pending) {
        one.prediction = layer(one.width, one.height);
        const mask = fromRuns(told.runs, one.width * one.height);
        one.prediction.getContext("2d").putImageData(
          colored(mask, one.width, {x: 0, y: 0, w: one.width, h: one.height}), 0, 0);
        one.predicted = model;
        if (page === one) say(`prediction, uncertainty ${Math.round(100 * told.uncertainty)} %`);
        break;
      }
      if (page !== one || !$("prediction").checked) break;
      say("the model is looking at the image");
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  } catch (error) {
    if (page === one) say(error.message, true);
  }
  one.asking = false;
  draw();
}

async function news() {
  try {
    const told = await json("news"), changed = told.model !== state.model;
    Object.assign(state, told);
    if (changed) predict();
    tools();
  } catch { /* the next request says it */ }
}

// The view ---------------------------------------------------------------------------------------------------------

function draw() {
  const ratio = devicePixelRatio || 1;
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, view.width, view.height);
  if (!page?.bitmap) return;
  ctx.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * left, ratio * top_);
  ctx.imageSmoothingEnabled = ratio * scale < 1.5;
  ctx.drawImage(page.bitmap, 0, 0);
  if ($("prediction").checked && page.prediction) {
    ctx.globalAlpha = .38;
    ctx.drawImage(page.prediction, 0, 0);
  }
  if ($("labels").checked && page.labels) {
    ctx.globalAlpha = .85;
    ctx.drawImage(page.labels, 0, 0);
  }
  ctx.globalAlpha = 1;
  if (mark && !page.closed) {
    for (const [color, wide] of [["#000", 3], ["#fff", 1.2]]) {
      ctx.lineWidth = wide / scale;
      ctx.strokeStyle = color;
      ctx.beginPath();
      ctx.arc(Math.floor(mark.x) + .5, Math.floor(mark.y) + .5, Math.max(brush / 2, 2 / scale), 0, 2 * Math.PI);
      ctx.stroke();
    }
  }
}

function fit() {
  if (!page?.bitmap) return draw();
  const {clientWidth: w, clientHeight: h} = view;
  scale = Math.min(w / page.width, h / page.height) * .97;
  left = (w - page.width * scale) / 2;
  top_ = (h - page.height * scale) / 2;
  fitted = true;
  draw();
}

function zoom(by, x = view.clientWidth / 2, y = view.clientHeight / 2) {
  const next = Math.max(.02, Math.min(60, scale * by)), real = next / scale;
  left = x - (x - left) * real;
  top_ = y - (y - top_) * real;
  scale = next;
  fitted = false;
  draw();
}

function toImage(event) {
  const box = view.getBoundingClientRect();
  return {x: (event.clientX - box.left - left) / scale, y: (event.clientY - box.top - top_) / scale};
}

new ResizeObserver(() => {
  const ratio = devicePixelRatio || 1;
  view.width = view.clientWidth * ratio;
  view.height = view.clientHeight * ratio;
  if (fitted && !stroke) fit();
  else draw();
}).observe(view);

// Pointers ---------------------------------------------------------------------------------------------------------

const pointers = new Map();
let space = false, moving = false;

view.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  view.focus({preventScroll: true});
  view.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  moving = space || event.button === 1 || event.button === 2 || pointers.size > 1;
  if (moving) {
    if (stroke) cancel();  // a second finger: the first one meant to move too
    view.classList.add("moving");
  } else if (event.button === 0) {
    begin(toImage(event));
  }
});

view.addEventListener("pointermove", (event) => {
  mark = toImage(event);
  const before = pointers.get(event.pointerId);
  if (before && moving) {
    const others = [...pointers.values()].filter((one) => one.pointerId !== event.pointerId);
    const share = 1 / pointers.size;
    left += (event.clientX - before.clientX) * share;
    top_ += (event.clientY - before.clientY) * share;
    fitted = false;
    if (others.length === 1) {
      const apart = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY) || 1;
      const box = view.getBoundingClientRect();
      zoom(apart(event) / apart(before), (event.clientX + others[0].clientX) / 2 - box.left,
        (event.clientY + others[0].clientY) / 2 - box.top);
    }
  } else if (before && stroke) {
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const one of passed.length ? passed : [event]) go(toImage(one));
  }
  if (before) pointers.set(event.pointerId, event);
  draw();
});

function up(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (stroke) end();
  if (!pointers.size) {
    moving = false;
    view.classList.remove("moving");
  }
}

view.addEventListener("pointerup", up);
view.addEventListener("pointercancel", up);
view.addEventListener("pointerleave", () => { if (!pointers.size) { mark = null; draw(); } });
view.addEventListener("contextmenu", (event) => event.preventDefault());
view.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = view.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? .05 : .0016)), event.clientX - box.left, event.clientY - box.top);
}, {passive: false});

// Tools and keys ---------------------------------------------------------------------------------------------------

function choose(label) {
  value = label;
  for (const button of $("classes").children) {
    button.setAttribute("aria-checked", String(Number(button.dataset.value) === label));
  }
  draw();
}

function resize(size) {
  brush = Math.max(1, Math.min(100, Math.round(size)));
  $("size").value = brush;
  $("sizeText").textContent = brush;
  draw();
}

function classButtons() {
  const buttons = [...state.classes.entries()].map(([number, one]) => [number, one.name, one.color, number + 1]);
  for (const [number, name, color, key] of [...buttons, [NONE, "eraser", null, "E"]]) {
    const button = document.createElement("button");
    button.setAttribute("role", "radio");
    button.dataset.value = number;
    if (color) {
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `rgb(${color.join(" ")})`;
      button.append(swatch);
    }
    button.append(name);
    if (key === "E" || key <= 9) {
      const hint = document.createElement("kbd");
      hint.textContent = key;
      button.append(hint);
    }
    button.onclick = () => choose(number);
    $("classes").append(button);
  }
  choose(Math.min(1, state.classes.length - 1));
}

function arrow(dx, dy, far) {
  if (!page?.mask) return;
  const by = Math.max(1, brush / 2) * (far ? 10 : 1);
  mark ??= {x: page.width / 2, y: page.height / 2};
  mark = {
    x: Math.max(0, Math.min(page.width - 1, mark.x + by * dx)),
    y: Math.max(0, Math.min(page.height - 1, mark.y + by * dy)),
  };
  draw();
}

function point(joined) {
  if (!mark || stroke) return;
  begin(joined && lastPoint ? lastPoint : mark);
  if (!stroke) return;
  go(mark);
  lastPoint = mark;
  end();
}

const KEYS = {
  e: () => choose(NONE), z: () => again("undo", "redo", "before"), y: () => again("redo", "undo", "after"),
  n: () => step(1), b: () => step(-1), d: markDone, s: suggest, l: () => $("labels").click(),
  p: () => $("prediction").click(), "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(.8), 0: fit,
  "[": () => resize(brush / 1.3 - .5), "]": () => resize(brush * 1.3 + .5), "?": () => $("help").showModal(),
};
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

addEventListener("keydown", (event) => {
  if ($("help").open || !state) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.altKey) return;
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    (key === "y" || event.shiftKey ? KEYS.y : KEYS.z)();
    return;
  }
  const onView = document.activeElement === view || document.activeElement === document.body;
  if (onView && key === " ") {
    space = true;
  } else if (onView && ARROWS[key]) {
    arrow(...ARROWS[key], event.shiftKey);
  } else if (onView && key === "Enter") {
    if (!event.repeat) point(event.shiftKey);
  } else if (/^[1-9]$/.test(key)) {
    if (state.classes[Number(key) - 1]) choose(Number(key) - 1);
  } else if (KEYS[key]) {
    KEYS[key]();
  } else {
    return;
  }
  event.preventDefault();
});
addEventListener("keyup", (event) => { if (event.key === " ") space = false; });
addEventListener("blur", () => { space = false; });  // it may be released in another window

$("back").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("undo").onclick = KEYS.z;
$("redo").onclick = KEYS.y;
$("suggest").onclick = suggest;
$("smaller").onclick = KEYS["-"];
$("larger").onclick = KEYS["+"];
$("fit").onclick = fit;
$("keys").onclick = KEYS["?"];
$("size").oninput = () => resize(Number($("size").value));
$("labels").onchange = draw;
$("prediction").onchange = predict;
$("done").onchange = markDone;

(async () => {
  try {
    state = await json("state");
  } catch (error) {
    say(error.message, true);
    return;
  }
  document.title = `${state.folder}: weakseg annotate`;
  classButtons();
  let asked = location.hash.slice(1);
  try {
    asked = decodeURIComponent(asked);
  } catch { /* typed by hand */ }
  await load(Math.max(0, state.images.findIndex((image) => image.name === asked)));
  if (state.model || state.training !== null) setInterval(news, 3000);
})();
