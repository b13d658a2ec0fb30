// What the page says to the server, and what goes wrong on the way, in words.

let key = sessionStorage.getItem("key") || "";

export class Trouble extends Error {
  // kind: "gone", "busy", "key", "file" or "refused"; wait: seconds, where the server says so.
  constructor(kind, message, wait) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

// Blanks around a key are none of it; a header carries ASCII alone, and so does every server's key.
export function useKey(value) {
  const typed = value.trim();
  key = /^[ -~]*$/.test(typed) ? typed : "";
  sessionStorage.setItem("key", key);
}

export const currentKey = () => key;

async function trouble(answer) {
  let said = {};
  try {
    said = (await answer.json()).error || {};
  } catch {
    // a proxy in between may answer anything
  }
  const message = said.message || `the server answers ${answer.status}`;
  if (answer.status === 401) return new Trouble("key", message);
  if (answer.status === 429 || answer.status === 503) {
    return new Trouble("busy", message, Number(answer.headers.get("retry-after")) || 3);
  }
  return new Trouble(said.code === "no_such_file" ? "file" : "refused", message);
}

export async function call(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("gone", "The server cannot be reached.");
  }
  if (!answer.ok) throw await trouble(answer);
  return answer;
}

export async function upload(file) {
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("file", file, file.name || "clip");
  return (await call("/v1/files", { method: "POST", body: form })).json();
}

export function forget(id) {
  return call(`/v1/files/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

export async function frames(id, kind, options) {
  const query = new URLSearchParams({ kind, ...options });
  return (await call(`/v1/files/${id}/frames?${query}`)).json();
}

// The events of a streamed answer, one by one.
export async function* complete(body, signal) {
  const answer = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let done = false;
  while (!done) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("gone", "The connection was lost in the middle of the answer.");
    }
    if (part.done) throw new Trouble("gone", "The server ended in the middle of the answer.");
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") { done = true; break; }
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Trouble("refused", event.error.message);
      yield event;
    }
  }
}
