// Boxes over the clip's or the camera's picture: those of an answer, and one drawn with the mouse to ask about. In pixels
// of the original, which the picture shown may be a smaller copy of; in thousandths of it in a question, as the model was
// trained.

const SVG = "http://www.w3.org/2000/svg";
const LEAST = 0.01; // of a side: less is a click
const FORM = "Answer in [[x0,y0,x1,y1]] format.";
const layer = document.getElementById("boxes");

let size = null; // { width, height } of the original
let start = null; // where the mouse was pressed
let onDrawn = () => {};

export function whenDrawn(callback) {
  onDrawn = callback;
}

// view: the id of the element that shows the picture; original and shown: its sizes.
export function begin(view, original, shown = original) {
  size = original;
  document.getElementById(view).append(layer);
  layer.setAttribute("viewBox", `0 0 ${shown.width} ${shown.height}`);
  show([]);
}

export function show(boxes) {
  layer.replaceChildren(...boxes.flatMap((box) => [rectangle(box, "box"), ...(box.label ? [label(box)] : [])]));
  const words = boxes.map((box) => `${box.label || "a box"} from ${box.x0}, ${box.y0} to ${box.x1}, ${box.y1}`);
  layer.setAttribute("aria-label", words.length ? `Boxes: ${words.join("; ")}` : "No boxes");
}

// The edges that a text names, or null: four numbers in order, within the picture.
export function edges(text) {
  const [x0, y0, x1, y1, more] = text.split(/[\s,]+/).filter(Boolean).map(Number);
  const good = size && x0 >= 0 && y0 >= 0 && x0 < x1 && y0 < y1 && x1 <= size.width && y1 <= size.height;
  return good && more === undefined ? { x0, y0, x1, y1 } : null;
}

// Shows a box to ask about; the text that stands for it in a question.
export function region(box) {
  layer.querySelector(".drawn")?.remove();
  layer.append(rectangle(box, "drawn"));
  const [left, right] = apart((1000 * box.x0) / size.width, (1000 * box.x1) / size.width);
  const [top, bottom] = apart((1000 * box.y0) / size.height, (1000 * box.y1) / size.height);
  return `[[${left}, ${top}, ${right}, ${bottom}]]`;
}

export const asking = (question) => (question.includes("[[x0,y0,x1,y1]]") ? question : `${question} ${FORM}`);

function apart(low, high) {
  const [a, b] = [Math.round(low), Math.round(high)];
  if (a < b) return [a, b];
  return a < 1000 ? [a, a + 1] : [a - 1, a];
}

function rectangle(box, kind) {
  const { width, height } = layer.viewBox.baseVal;
  const [x, y] = [width / size.width, height / size.height];
  return made("rect", kind, { x: box.x0 * x, y: box.y0 * y, width: (box.x1 - box.x0) * x, height: (box.y1 - box.y0) * y });
}

// Above the box where there is room, else within it.
function label(box) {
  const { width, height } = layer.viewBox.baseVal;
  const letters = Math.min(width, height) / 20;
  const top = (box.y0 / size.height) * height;
  const y = top > 1.2 * letters ? top - 0.3 * letters : top + letters;
  const text = made("text", "", { x: (box.x0 / size.width) * width, y, "font-size": letters });
  text.textContent = box.label;
  return text;
}

function made(name, kind, attributes) {
  const element = document.createElementNS(SVG, name);
  if (kind) element.setAttribute("class", kind);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

// Where an event is, in pixels of the original.
function place(event) {
  const { width, height } = layer.viewBox.baseVal;
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(layer.getScreenCTM().inverse());
  const within = (value, most) => Math.max(0, Math.min(1, value / most));
  return { x: Math.round(within(at.x, width) * size.width), y: Math.round(within(at.y, height) * size.height) };
}

function between(a, b) {
  return { x0: Math.min(a.x, b.x), y0: Math.min(a.y, b.y), x1: Math.max(a.x, b.x), y1: Math.max(a.y, b.y) };
}

layer.addEventListener("pointerdown", (event) => {
  if (!size || event.button || event.pointerType === "touch") return; // a finger scrolls
  event.preventDefault();
  layer.setPointerCapture(event.pointerId);
  start = place(event);
});
layer.addEventListener("pointermove", (event) => {
  if (start) region(between(start, place(event)));
});
layer.addEventListener("pointerup", (event) => {
  if (!start) return;
  const box = between(start, place(event));
  start = null;
  layer.querySelector(".drawn")?.remove();
  if (box.x1 - box.x0 > LEAST * size.width && box.y1 - box.y0 > LEAST * size.height) onDrawn(box);
});
layer.addEventListener("pointercancel", () => {
  start = null;
  layer.querySelector(".drawn")?.remove();
});
