// The page of clf-serve: sends an image to v1/classify and shows the answer. Text from the model is only ever set as text.
"use strict";

const TOP = 5;
const element = (id) => document.getElementById(id);
let stream = null;
let lastImage = null;

function headers() {
  const token = element("token").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function fetchJson(path, options) {
  const response = await fetch(path, { ...options, headers: headers() });
  element("token-row").hidden = element("token-row").hidden && response.status !== 401;
  const content = await response.json();
  if (!response.ok) throw new Error(content.error.message);
  return content;
}

function showMessage(text, isError) {
  element("message").textContent = text;
  element("message").classList.toggle("error", isError);
}

function showTop(rows) {
  element("top").replaceChildren(...rows.map((row) => {
    const item = document.createElement("li");
    const label = document.createElement("span");
    const score = document.createElement("span");
    const bar = document.createElement("meter");
    label.textContent = row.label;
    score.className = "score";
    score.textContent = row.score === null ? "not a number" : `${(100 * row.score).toFixed(1)} %`;
    bar.value = row.score ?? 0;
    item.append(label, score, bar);
    return item;
  }));
}

async function classify(image) {
  lastImage = image;
  URL.revokeObjectURL(element("preview").src);
  element("preview").src = URL.createObjectURL(image);
  element("preview").hidden = false;
  element("hint").hidden = true;
  showMessage("Classifying …", false);
  const started = performance.now();
  try {
    const record = await fetchJson(`v1/classify?top=${TOP}`, { method: "POST", body: image });
    const elapsed = performance.now() - started;
    showTop(record.top);
    showMessage(`${elapsed.toFixed(0)} ms with the transfer of ${(image.size / 1000).toFixed(1)} kB`, false);
  } catch (error) {
    showTop([]);
    showMessage(error.message, true);
  }
}

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  element("video").hidden = true;
  element("shoot").hidden = true;
  element("camera").textContent = "Use the camera";
}

async function toggleCamera() {
  if (stream) {
    stopCamera();
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    element("camera-note").hidden = false;
    element("camera-note").textContent = `The camera cannot be used: ${error.message}`;
    return;
  }
  const video = element("video");
  video.srcObject = stream;
  video.hidden = false;
  element("preview").hidden = true;
  element("hint").hidden = true;
  element("shoot").hidden = false;
  element("camera").textContent = "Stop the camera";
  await video.play();
}

function shoot() {
  const video = element("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  stopCamera();
  canvas.toBlob(classify, "image/jpeg", 0.95);
}

function percent(number) {
  return `${(100 * number).toFixed(1)} %`;
}

function cardRows(model) {
  const { architecture, labels, preprocess, metrics, provenance } = model.spec;
  const rows = [
    ["Network", architecture],
    ["Labels", `${labels.length}: ${labels.slice(0, 20).join(", ")}${labels.length > 20 ? ", …" : ""}`],
    ["Input", `${preprocess.width} × ${preprocess.height} pixels, ${preprocess.color}, ${preprocess.resize}`],
    ["Runs on", model.provider],
    ["Self-test", `${model.self_test.images} images, passed`],
  ];
  if (metrics) rows.push(["Accuracy", `${percent(metrics.accuracy)} of ${metrics.images} images (${metrics.split})`]);
  if (provenance && provenance.data) rows.push(["Trained on", `${provenance.data}, ${provenance.time}`]);
  rows.push(["SHA-256", model.sha256]);
  return rows;
}

async function showModel() {
  try {
    const model = await fetchJson("v1/model", {});
    element("model").textContent = `${model.name} · ${model.spec.labels.length} labels · ${model.provider}`;
    element("card").replaceChildren(...cardRows(model).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      term.textContent = name;
      description.textContent = value;
      return [term, description];
    }));
  } catch (error) {
    element("model").textContent = error.message;
  }
}

function listen() {
  const drop = element("drop");
  element("file").addEventListener("change", (event) => {
    if (event.target.files.length) classify(event.target.files[0]);
    event.target.value = "";
  });
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") element("file").click();
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) classify(event.clipboardData.files[0]);
  });
  element("camera").addEventListener("click", toggleCamera);
  element("shoot").addEventListener("click", shoot);
  element("token").addEventListener("change", () => {
    showModel();
    if (lastImage) classify(lastImage);
  });
  if (!navigator.mediaDevices) {
    element("camera").disabled = true;
    element("camera-note").hidden = false;
    element("camera-note").textContent =
      "Browsers allow the camera only over https or on this machine itself. On a phone, “choose a file” offers the camera.";
  }
}

listen();
showModel();
