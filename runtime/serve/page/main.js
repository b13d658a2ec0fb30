// The page: a clip or a camera, a question, and an answer as it comes.

import * as boxes from "./boxes.js";
import * as conversation from "./conversation.js";
import * as live from "./live.js";
import { call, complete, forget, frames, Trouble, upload, useKey } from "./server.js";
import * as timeline from "./timeline.js";

const element = (id) => document.getElementById(id);
const OPTIONS = { fps: "fps", max_frames: "max-frames", threshold: "threshold", max_visual_tokens: "max-tokens" };

let clip = null; // { file, id, kind, shown, seen, found }: what was dropped, what the server knows of it, boxes found
let turns = []; // of the conversation about it, as the server wants them
let asking = null;

const status = (text) => { element("status").textContent = text; };
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

function options() {
  const chosen = Object.entries(OPTIONS).map(([name, id]) => [name, element(id).value]).filter(([, value]) => value);
  return Object.fromEntries(chosen.map(([name, value]) => [name, Number(value)]));
}

// Tells what went wrong; true where it is worth trying again, after the time that takes.
async function recovers(error, signal) {
  if (error.name === "AbortError") return false;
  if (error.kind === "key") {
    element("key-form").hidden = false;
    element("key").focus();
    status("The server wants its key.");
    return false;
  }
  if (error.kind === "busy") {
    for (let left = error.wait; left > 0 && !signal?.aborted; left--) {
      status(`The server is busy. Trying again in ${left} s …`);
      await pause(1);
    }
    status("");
    return !signal?.aborted;
  }
  if (error.kind === "gone") await untilBack();
  else conversation.note(error.message);
  status("");
  return false;
}

async function untilBack() {
  const banner = element("banner");
  banner.hidden = false;
  banner.textContent = "The server cannot be reached. Looking for it …";
  while (true) {
    await pause(2);
    try {
      await call("/health");
      break;
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
    }
  }
  banner.hidden = true;
  conversation.note("The server is back: ask again.");
}

async function retried(work, signal) {
  while (true) {
    try {
      return await work();
    } catch (error) {
      if (!(await recovers(error, signal))) throw error;
    }
  }
}

async function uploaded() {
  if (!clip.id) clip.id = (await retried(() => upload(clip.file))).id;
}

async function look() {
  const chosen = JSON.stringify(options());
  if (clip.shown === chosen) return;
  status("Reading …");
  await uploaded();
  const seen = await retried(() => frames(clip.id, clip.kind, options()));
  timeline.show(seen, clip.file.name || "camera");
  Object.assign(clip, { seen, shown: chosen, found: [] });
  layBoxes();
  element("drop").hidden = true;
  element("seen").hidden = false;
  status("");
}

function layBoxes() {
  const { seen, found } = clip;
  const original = { width: seen.source_width_px, height: seen.source_height_px };
  boxes.begin("view", original, { width: seen.width_px, height: seen.height_px });
  boxes.show(found);
}

// end: what came with the end of an answer. Gives its boxes.
function showBoxes(end, isOneFrame) {
  const found = end.boxes || [];
  if (end.boxes_note) conversation.note(`Not shown: ${end.boxes_note}`);
  boxes.show(found);
  if (found.length && !isOneFrame) conversation.note("The answer does not say of which frame its boxes are.");
  return found;
}

async function take(file) {
  if (!file) return;
  leave();
  clip = { file, id: null, kind: file.type.startsWith("image/") && file.type !== "image/gif" ? "image" : "video", shown: null, seen: null };
  status("Sending …");
  try {
    await look();
    element("question").focus();
  } catch {
    status("");
    if (clip.id) await forget(clip.id);
    clip = null;
  }
}

function leave() {
  if (clip?.id) forget(clip.id);
  clip = null;
  turns = [];
  element("file").value = "";
  element("drop").hidden = false;
  element("seen").hidden = true;
}

async function answerAboutClip(text, onText, signal) {
  await look();
  const media = { type: `${clip.kind}_url`, [`${clip.kind}_url`]: { url: clip.id } };
  const content = turns.length ? text : [media, { type: "text", text }];
  if (turns.length) turns[0].content[0] = media; // it may have been sent anew
  const messages = [...turns, { role: "user", content }];
  let said = "";
  let usage = null;
  let end = {};
  for await (const event of complete({ messages, ...options() }, signal)) {
    const piece = event.choices[0]?.delta.content || "";
    said += piece;
    if (piece) onText(piece);
    usage = event.usage || usage;
    if (event.boxes) end = event;
  }
  clip.found = showBoxes(end, clip.seen.frames.length === 1);
  turns = [...messages, { role: "assistant", content: said }];
  if (usage) {
    const known = usage.prompt_tokens_details.cached_tokens;
    status(`${usage.prompt_tokens} tokens read, ${known} of them known before; ${usage.completion_tokens} written`);
  }
  return clip.found;
}

async function answerAboutCamera(text, onText, signal) {
  return showBoxes(await live.ask(text, onText, signal), live.frames() === 1);
}

const isAboutCamera = () => !element("live").hidden;

// Whether there is something to ask about; says so if there is not.
function isThere() {
  const found = isAboutCamera() ? live.isOn() : clip !== null;
  if (!found) status(isAboutCamera() ? "Start the camera first." : "Drop a clip first.");
  return found;
}

async function ask(text) {
  if (!isThere()) return;
  const aboutCamera = isAboutCamera();
  asking = new AbortController();
  const { signal } = asking;
  status("");
  if (element("ask-boxes").checked) text = boxes.asking(text);
  element("question").value = element("region").value = "";
  element("send").disabled = true;
  element("stop").hidden = false;
  conversation.add("user", text);
  conversation.remember({ role: "user", text, clip: aboutCamera ? "camera" : clip.file.name });
  const item = conversation.add("assistant", "…");
  let said = "";
  const show = (piece) => {
    said += piece;
    item.textContent = said;
    item.scrollIntoView({ block: "nearest" });
  };
  const work = () => (aboutCamera ? answerAboutCamera(text, show, signal) : answerAboutClip(text, show, signal));
  let found = [];
  try {
    found = await retried(async () => {
      try {
        return await work();
      } catch (error) {
        if (error.kind !== "file") throw error;
        clip.id = clip.shown = null; // the server was started anew, or kept it long enough: send it again
        return work();
      }
    }, signal);
  } catch {
    if (!said) item.remove();
  } finally {
    asking = null;
    element("send").disabled = false;
    element("stop").hidden = true;
    conversation.keepFocus();
    if (said) {
      conversation.link(item, said);
      conversation.remember({ role: "assistant", text: said, ...(found?.length ? { boxes: found } : {}) });
    }
  }
}

function tab(name) {
  for (const other of ["clip", "live"]) {
    const isChosen = other === name;
    element(other).hidden = !isChosen;
    element(`tab-${other}`).setAttribute("aria-selected", String(isChosen));
    element(`tab-${other}`).tabIndex = isChosen ? 0 : -1;
  }
  element("question").placeholder = name === "clip" ? "Ask about the clip" : "Ask about what the camera saw";
  if (name === "clip" && live.isWanted()) live.stop();
  if (name === "clip" && clip?.seen) layBoxes();
}

for (const name of ["clip", "live"]) {
  element(`tab-${name}`).addEventListener("click", () => tab(name));
  element(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "clip" ? "live" : "clip";
    tab(other);
    element(`tab-${other}`).focus();
  });
}

// A part of the picture, where the cursor is in the question.
function addRegion(box) {
  const question = element("question");
  element("region").value = [box.x0, box.y0, box.x1, box.y1].join(", ");
  const before = question.value.slice(0, question.selectionStart);
  const space = before && !/\s$/.test(before) ? " " : "";
  question.setRangeText(`${space}${boxes.region(box)}`, question.selectionStart, question.selectionEnd, "end");
  question.focus();
}

boxes.whenDrawn(addRegion);
element("add-region").addEventListener("click", () => {
  if (!isThere()) return;
  const box = boxes.edges(element("region").value);
  if (box) addRegion(box);
  else status("A box has four numbers of pixels within the picture: left, top, right, bottom.");
});
element("region").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // the question gets the focus, and would get a line
  element("add-region").click();
});
element("file").addEventListener("change", (event) => take(event.target.files[0]));
element("another").addEventListener("click", () => { leave(); element("file").focus(); });
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("question").value.trim();
  if (text && !asking) ask(text);
});
element("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});
element("stop").addEventListener("click", () => asking?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") asking?.abort(); });
for (const id of Object.values(OPTIONS)) {
  element(id).addEventListener("change", () => { if (clip) { turns = []; look().catch(() => {}); } });
}
element("clear").addEventListener("click", () => { turns = []; });
element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(element("key").value);
  element("key-form").hidden = true;
  status("");
  element("question").focus();
  greet();
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") { tab("clip"); take(event.dataTransfer.files[0]); }
  });
}
addEventListener("pagehide", () => { if (clip?.id) forget(clip.id); });
conversation.whenTimeIsClicked(timeline.selectTime);

async function greet() {
  try {
    const models = await (await call("/v1/models")).json();
    element("model").textContent = `${models.data[0].id} on ${models.data[0].backend}`;
  } catch (error) {
    await recovers(error);
  }
}

greet();
