// What was said: shown, remembered, and saved as a file.

const element = (id) => document.getElementById(id);
const TIME = /\b(?:(\d+):)?(\d{1,3}):(\d{2}(?:\.\d+)?)\b|\b(\d+(?:\.\d+)?)\s?(?:s|secs?|seconds?)\b/gi;

export const said = [];
let onTime = () => {};

export function whenTimeIsClicked(callback) {
  onTime = callback;
}

export function add(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  element("messages").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

// A button that had the focus is disabled or gone: the keyboard goes on at the question's.
export function keepFocus() {
  const focused = document.activeElement;
  if (focused === document.body || focused.disabled || focused.hidden) element("send").focus();
}

export function note(text) {
  return add("note", text);
}

// Times in an answer become buttons that show the frame of that time.
export function link(item, text) {
  item.replaceChildren();
  let end = 0;
  for (const found of text.matchAll(TIME)) {
    const [whole, hours, minutes, seconds, plain] = found;
    const at = plain ? Number(plain) : Number(hours || 0) * 3600 + Number(minutes) * 60 + Number(seconds);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "time";
    button.textContent = whole;
    button.title = "Show this frame";
    button.addEventListener("click", () => onTime(at));
    item.append(text.slice(end, found.index), button);
    end = found.index + whole.length;
  }
  item.append(text.slice(end));
}

export function remember(turn) {
  said.push({ ...turn, at: new Date().toISOString() });
  enable();
}

export function clear() {
  said.length = 0;
  element("messages").replaceChildren();
  enable();
}

function enable() {
  for (const id of ["export-text", "export-json", "clear"]) element(id).disabled = !said.length;
}

function save(name, kind, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const asMarkdown = () =>
  said.map((turn) => (turn.role === "user" ? `**${turn.text}**${turn.clip ? ` (${turn.clip})` : ""}` : turn.text)).join("\n\n");

element("export-text").addEventListener("click", () => save("conversation.md", "text/markdown", `${asMarkdown()}\n`));
element("export-json").addEventListener("click", () =>
  save("conversation.json", "application/json", `${JSON.stringify(said, null, 2)}\n`));
element("clear").addEventListener("click", () => { clear(); keepFocus(); });
