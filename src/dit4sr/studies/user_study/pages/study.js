"use strict";
// Zooms the three pictures in step, and takes answers from the keyboard. Without it the page is a plain form, and
// each picture a link to itself.

const MOST = 16;
const views = [...document.querySelectorAll(".view")];
const level = document.getElementById("level");
// The part shown, the same in every view: scale, and the corner's offset in widths and heights of the view.
let scale = 1, x = 0, y = 0;

function show() {
  scale = Math.min(MOST, Math.max(1, scale));
  x = Math.min(0, Math.max(1 - scale, x));
  y = Math.min(0, Math.max(1 - scale, y));
  for (const view of views) {
    view.firstElementChild.style.transform = `translate(${100 * x}%, ${100 * y}%) scale(${scale})`;
    view.classList.toggle("grab", scale > 1);
  }
  level.value = `${scale < 10 ? Math.round(10 * scale) / 10 : Math.round(scale)}×`;
}

// Zooms about a point of the view, given in widths and heights, which stays where it is.
function zoom(factor, px = 0.5, py = 0.5) {
  const before = scale;
  scale = Math.min(MOST, Math.max(1, scale * factor));
  x = px - (px - x) * scale / before;
  y = py - (py - y) * scale / before;
  show();
}

function fit() {
  scale = 1;
  show();
}

function place(view, event) {
  const box = view.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

for (const view of views) {
  const fingers = new Map();
  let moved = false;
  view.classList.add("live");
  view.addEventListener("wheel", (event) => {
    if (scale === 1 && event.deltaY > 0) return; // nothing to zoom out of: the page scrolls
    event.preventDefault();
    zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.003), ...place(view, event));
  }, { passive: false });
  view.addEventListener("pointerdown", (event) => {
    if (fingers.size === 0) moved = false;
    fingers.set(event.pointerId, place(view, event));
  });
  view.addEventListener("pointermove", (event) => {
    const from = fingers.get(event.pointerId);
    if (from === undefined) return;
    const to = place(view, event);
    const still = [...fingers].find(([id]) => id !== event.pointerId);
    if (still !== undefined) {
      const other = still[1];
      const spread = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      zoom(spread(to) / Math.max(spread(from), 0.01), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
      moved = true;
    } else if (scale > 1) {
      if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 0.005 && !moved) return;
      if (!moved) view.setPointerCapture(event.pointerId);
      x += to[0] - from[0];
      y += to[1] - from[1];
      moved = true;
      show();
    }
    fingers.set(event.pointerId, to);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    view.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  view.addEventListener("dragstart", (event) => event.preventDefault());
  view.addEventListener("click", (event) => {
    event.preventDefault(); // the link is for those without scripts
    if (moved) { moved = false; return; }
    if (scale > 1) fit(); else zoom(4, ...place(view, event));
  });
}

document.getElementById("in").addEventListener("click", () => zoom(1.5));
document.getElementById("out").addEventListener("click", () => zoom(1 / 1.5));
document.getElementById("fit").addEventListener("click", fit);
document.getElementById("zoom").hidden = false;
document.getElementById("keys").hidden = false;

const form = document.getElementById("answers");
const questions = [...form.querySelectorAll("fieldset")];
let active = 0;

function activate(number) {
  active = Math.min(questions.length - 1, Math.max(0, number));
  questions.forEach((question, i) => question.classList.toggle("active", i === active));
}

function choose(side) {
  questions[active].querySelector(`input[value=${side}]`).checked = true;
  const open = questions.findIndex((question) => question.querySelector("input:checked") === null);
  if (open >= 0) activate(open); else form.querySelector("button").focus();
}

const keys = {
  ArrowLeft: () => choose("left"),
  ArrowRight: () => choose("right"),
  1: () => choose("left"),
  2: () => choose("right"),
  ArrowUp: () => activate(active - 1),
  ArrowDown: () => activate(active + 1),
  Enter: () => form.requestSubmit(),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  0: fit,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
  // Enter on a button or a link is that button's own.
  if (event.key === "Enter" && event.target.closest("button, a") !== null) return;
  event.preventDefault();
  keys[event.key]();
});

questions.forEach((question, i) => question.addEventListener("change", () => {
  activate(i);
  const open = questions.findIndex((q) => q.querySelector("input:checked") === null);
  if (open >= 0) activate(open);
}));

// A second press sends nothing while the first is on its way.
let sent = false;
form.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => { sent = false; });

activate(0);
show();
