// The frames that were sampled, as the model saw them: a large one, and all of them in a row.

const element = (id) => document.getElementById(id);
let seen = null;
let current = 0;

const clock = (seconds) => `${Number(seconds.toFixed(2))} s`;

export function show(clip, name) {
  seen = clip;
  const items = clip.frames.map((frame, number) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const thumb = document.createElement("span");
    button.type = "button";
    button.tabIndex = -1;
    button.setAttribute("aria-label", `Frame at ${clock(frame.time_s)}, ${frame.kept} of ${frame.of} tokens kept`);
    thumb.className = "thumb";
    thumb.append(image(frame.picture), image(frame.veil, "veil"));
    button.append(thumb, clip.kind === "image" ? "picture" : clock(frame.time_s));
    button.addEventListener("click", () => select(number));
    item.append(button);
    return item;
  });
  element("timeline").replaceChildren(...items);
  element("timeline").hidden = clip.frames.length < 2;
  const share = Math.round((100 * clip.pruned) / Math.max(1, clip.kept + clip.pruned));
  const pruned = clip.pruned ? `, ${share} % pruned` : "";
  seen.facts = `${name}: ${clip.frames.length} frame${clip.frames.length === 1 ? "" : "s"} of ${clip.width_px} × ${clip.height_px}, ${clip.kept} visual tokens${pruned}`;
  select(0);
}

function image(source, kind) {
  const made = document.createElement("img");
  made.src = source;
  made.alt = "";
  if (kind) made.className = kind;
  return made;
}

export function select(number, focus = false) {
  current = Math.max(0, Math.min(seen.frames.length - 1, number));
  const frame = seen.frames[current];
  element("picture").src = frame.picture;
  element("picture").alt = seen.kind === "image" ? "The picture" : `The frame at ${clock(frame.time_s)}`;
  element("veil").src = frame.veil;
  const at = seen.kind === "image" ? "" : ` At ${clock(frame.time_s)}: ${frame.kept} of ${frame.of} kept.`;
  element("facts").textContent = `${seen.facts}.${at}`;
  [...element("timeline").querySelectorAll("button")].forEach((button, index) => {
    button.setAttribute("aria-current", String(index === current));
    button.tabIndex = index === current ? 0 : -1;
    if (index === current) {
      const row = element("timeline");
      row.scrollLeft = button.offsetLeft - row.offsetLeft - (row.clientWidth - button.offsetWidth) / 2;
      if (focus) button.focus({ preventScroll: true });
    }
  });
}

// The frame that was shown at a time: the last one at or before it, or the first.
export function selectTime(seconds) {
  if (!seen) return;
  const later = seen.frames.findIndex((frame) => frame.time_s > seconds + 1e-6);
  select(later < 0 ? seen.frames.length - 1 : later - 1);
  element("view").scrollIntoView({ block: "nearest" });
}

element("timeline").addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  select(current + steps[event.key], true);
});

element("show-veil").addEventListener("change", (event) => {
  element("clip").classList.toggle("no-veil", !event.target.checked);
});
