// A camera: frames go over a WebSocket, questions about what was seen come back as answers.

import * as boxes from "./boxes.js";
import { currentKey } from "./server.js";

const element = (id) => document.getElementById(id);
const facts = (text) => { element("live-facts").textContent = text; };

let socket = null;
let stream = null;
let timer = null;
let handler = null; // of the answer under way
let isAskedFor = false; // it may take a while until the browser gives the camera
let attempts = 0;
let isReady = false;
let trouble = "";
let sent = { width: 0, height: 0 }; // the size of the frame sent last
let remembered = 0; // frames

export const frames = () => remembered;

export const isOn = () => isReady;
export const isWanted = () => isAskedFor;

const end = (stream) => stream.getTracks().forEach((track) => track.stop());

async function start() {
  if (!navigator.mediaDevices) {
    facts("The browser gives cameras to pages of localhost or https alone.");
    return;
  }
  facts("Asking for the camera …");
  isAskedFor = true;
  const attempt = ++attempts;
  element("camera-switch").textContent = "Stop the camera";
  let given;
  try {
    given = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    const isRefused = error.name === "NotAllowedError";
    if (attempt === attempts) stop(isRefused ? "The browser may not use the camera." : "There is no camera that can be used.");
    return;
  }
  if (attempt !== attempts) { // stopped meanwhile
    end(given);
    return;
  }
  stream = given;
  const video = element("camera");
  video.srcObject = stream;
  await video.play().catch(() => {}); // stopped meanwhile
  if (attempt !== attempts) return;
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`);
  socket.addEventListener("open", () => send({ type: "start", key: currentKey() }));
  socket.addEventListener("message", (event) => receive(JSON.parse(event.data)));
  trouble = "";
  socket.addEventListener("close", (event) => {
    if (event.target === socket) stop(trouble || "The session has ended: the server closed it, or cannot be reached.");
  });
}

function receive(message) {
  if (message.type === "ready") {
    isReady = true;
    facts("Watching.");
    push();
  } else if (message.type === "frame") {
    remembered = message.frames;
    const dropped = message.dropped ? `, ${message.dropped} dropped while the model was busy` : "";
    facts(`${message.time_s.toFixed(0)} s: ${message.frames} frames remembered, ${message.kept} of ${message.of} tokens new${dropped}.`);
    element("live-kept").style.width = `${(100 * message.kept) / message.of}%`;
  } else if (message.type === "error" && !handler) {
    trouble = message.error.message; // the server closes the session where it cannot go on
    facts(trouble);
  } else if (handler) {
    handler(message);
  }
}

function push() {
  const video = element("camera");
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, 640 / video.videoWidth);
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  if (canvas.width !== sent.width || canvas.height !== sent.height) {
    sent = { width: canvas.width, height: canvas.height };
    boxes.begin("live-view", sent);
  }
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => {
    if (isReady && socket.bufferedAmount < 1 << 20) socket.send(blob);
  }, "image/jpeg", 0.85);
  timer = setTimeout(push, 1000 / Math.max(0.1, Number(element("live-fps").value) || 1));
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

export function stop(why = "The camera is off.") {
  clearTimeout(timer);
  isAskedFor = isReady = false;
  attempts++;
  if (stream) end(stream);
  if (handler) handler({ type: "error", error: { message: why } });
  const old = socket;
  socket = stream = handler = null;
  if (sent.width) boxes.show([]);
  sent = { width: 0, height: 0 };
  if (old) old.close();
  element("camera").srcObject = null;
  element("camera-switch").textContent = "Start the camera";
  facts(why);
}

// The answer to a question, by pieces, and what the server says at its end; `signal` ends it.
export function ask(text, onText, signal) {
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => send({ type: "stop" }));
    handler = (message) => {
      if (message.type === "answer") onText(message.text);
      if (message.type === "end") { handler = null; resolve(message); }
      if (message.type === "error") { handler = null; reject(new Error(message.error.message)); }
    };
    send({ type: "ask", text });
  });
}

element("camera-switch").addEventListener("click", () => (isAskedFor ? stop() : start()));
