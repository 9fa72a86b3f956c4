// Each photo is one request; the server batches the photos of several requests.

const MAX_REQUESTS = 4; // at the same time
const TOP = 5; // classes shown per photo
const FILTER_FROM = 15; // classes; with fewer, the filter is hidden
const find = (id) => document.getElementById(id);

const photos = []; // { file, card, unreadable }, all photos on the page
const queue = []; // photos to classify
let running = 0;
let classifier = null; // its name in the last response
let classes = [];
let readOnly = true;

// The JSON body of the response; throws an Error with the detail of the problem document.
async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: is it running?");
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const error = new Error(sentence(body?.detail ?? `the server answers ${response.status}`));
  error.status = response.status;
  error.retryAfter = Number(response.headers.get("Retry-After"));
  throw error;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

function addPhotos(files) {
  for (const file of files) {
    const card = find("card").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.addEventListener("error", () => card.classList.add("unreadable"));
    card.querySelector("h3").textContent = file.name;
    card.querySelector("h3").title = file.name;
    photos.push({ file, card });
  }
  const added = photos.slice(photos.length - files.length);
  find("cards").prepend(...added.map(({ card }) => card));
  classify(added);
}

function classify(selected) {
  for (const photo of selected) {
    photo.card.classList.add("busy");
    if (!queue.includes(photo)) queue.push(photo);
  }
  while (running < MAX_REQUESTS && queue.length) processQueue();
  showProgress();
}

async function processQueue() {
  running += 1;
  while (queue.length) {
    const photo = queue.shift();
    const prediction = await predict(photo.file);
    photo.unreadable = prediction.status === 422;
    show(photo.card, prediction);
    showProgress();
  }
  running -= 1;
  showProgress();
}

async function predict(file) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const headers = { "Content-Type": file.type || "application/octet-stream" };
      const answer = await request(`/v1/classify?top=${TOP}&reasons=true`, { method: "POST", body: file, headers });
      if (answer.classifier !== classifier) loadClasses();
      return answer.photos[0];
    } catch (error) {
      if (error.status !== 503 || attempt === 5) {
        return { error: error.message, status: error.status, candidates: [] };
      }
      await pause(error.retryAfter || 1);
    }
  }
}

function show(card, { candidates, unknown, reasons, error }) {
  card.classList.remove("busy");
  card.classList.toggle("none", Boolean(unknown));
  const verdict = card.querySelector(".verdict");
  verdict.className = `verdict ${error ? "failed" : unknown ? "none" : ""}`;
  verdict.textContent = error ?? (unknown ? "None of these" : candidates[0].name);
  card.querySelector(".why").replaceChildren(...(reasons ? reasonRows(candidates[0], reasons) : []));
  card.querySelector("ol").replaceChildren(
    ...candidates.map(({ name, probability }) => {
      const row = document.createElement("li");
      const bar = element("span", "bar");
      bar.style.width = `${100 * probability}%`;
      const track = element("span", "track");
      track.append(bar);
      row.append(element("span", "name", name), element("span", "number", percent(probability)), track);
      return row;
    }),
  );
}

// The attributes that support the best class, and its differences from the runner-up.
function reasonRows(best, { attributes, differences }) {
  const group = (title, rows) =>
    rows.length ? [element("dt", "", title), ...rows.map(([text, evidence]) => reasonRow(text, evidence))] : [];
  const supporting = attributes.filter(({ supports }) => supports);
  return [
    ...group(`Supports ${best.name}`, supporting.map(({ text, evidence }) => [text, evidence])),
    ...group("Differences from the runner-up", differences.map(({ text, name, evidence }) => [`${name}: ${text}`, evidence])),
  ];
}

function reasonRow(text, evidence) {
  const row = element("dd", "", `${text} `);
  const number = `${evidence < 0 ? "−" : "+"}${Math.abs(evidence).toFixed(1)}`;
  row.append(element("span", "evidence", number));
  row.title = "Standard deviations above the mean over other photos";
  return row;
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function showProgress() {
  const left = queue.length + running;
  const counted = `${photos.length} photo${photos.length === 1 ? "" : "s"}`;
  find("progress").textContent = left ? `Classifying: ${left} of ${counted} left` : photos.length ? counted : "";
}

async function loadClasses() {
  try {
    const response = await request("/v1/classes");
    classes = response.classes;
    classifier = response.classifier;
    readOnly = response.read_only;
  } catch (error) {
    find("summary").textContent = error.message;
    return;
  }
  document.title = classifier;
  find("title").textContent = classifier;
  find("summary").textContent = `${classes.length} class${classes.length === 1 ? "" : "es"}`;
  find("add").hidden = readOnly;
  find("filter-label").hidden = classes.length < FILTER_FROM;
  showClasses();
}

function showClasses() {
  const wanted = find("filter").value.trim().toLowerCase();
  const shown = classes.filter(({ name }) => name.toLowerCase().includes(wanted));
  // Newest first: a class that was just added should be visible.
  find("class-list").replaceChildren(...shown.reverse().map(classRow));
}

function classRow({ key, name, texts, seen, origin }) {
  const row = document.createElement("li");
  row.title = texts.join("\n");
  const kind = origin === "added" ? "added" : seen ? "seen" : "unseen";
  row.append(element("span", "name", name), element("span", `tag ${kind}`, kind));
  if (!readOnly) {
    const button = element("button", "", "Remove");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${name}`);
    button.addEventListener("click", () => remove(key, name));
    row.append(button);
  }
  return row;
}

function showMessage(text, good) {
  find("message").textContent = text;
  find("message").className = good ? "good" : "bad";
}

async function add(event) {
  event.preventDefault();
  const name = find("name").value.trim();
  const text = find("text").value.trim();
  find("submit").disabled = true;
  showMessage(text ? "" : `Asking for a description of ${name} …`, true);
  try {
    const body = { name, allow_near: find("allow-near").checked, ...(text && { text }) };
    const options = { method: "POST", headers: { "Content-Type": "application/json" } };
    const added = await request("/v1/classes", { ...options, body: JSON.stringify(body) });
    showMessage(`Added ${added.name}: “${added.texts.join("” “")}”`, true);
    find("add").reset();
    find("near").hidden = true;
    find("filter").value = "";
    await changed();
    find("name").focus();
  } catch (error) {
    showMessage(error.message, false);
    // Only for this error does the checkbox to add it anyway help.
    find("near").hidden = !error.message.includes("too similar");
  } finally {
    find("submit").disabled = false;
  }
}

async function remove(key, name) {
  find("confirm-text").textContent = `Remove ${name}? Its text will be deleted from the classifier.`;
  const dialog = find("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  try {
    await request(`/v1/classes/${encodeURIComponent(key)}`, { method: "DELETE" });
    showMessage(`Removed ${name}.`, true);
  } catch (error) {
    showMessage(error.message, false);
  }
  await changed();
}

async function changed() {
  await loadClasses();
  classify(photos.filter(({ unreadable }) => !unreadable));
}

find("files").addEventListener("change", ({ target }) => {
  addPhotos([...target.files]);
  target.value = ""; // the same file may be chosen again
});
find("add").addEventListener("submit", add);
find("filter").addEventListener("input", showClasses);

let inside = 0; // nested elements that the dragged files are over
addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++inside > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dragging", --inside > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  addPhotos([...event.dataTransfer.files]);
});

loadClasses();
