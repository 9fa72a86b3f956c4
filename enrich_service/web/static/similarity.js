// The similarity map of class texts: zoom, pan, and read the two classes at a point.
// Without this script the page shows the same image as the worker sent it.
"use strict";

const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const MIN_SPAN = 6; // classes per side at the highest zoom

// A colour for each grey value: dark blue to yellow, distinct for colour-blind readers too.
function colours() {
  return Array.from({ length: 256 }, (_, value) => {
    const at = (value / 255) * (STOPS.length - 1);
    const below = Math.min(Math.floor(at), STOPS.length - 2);
    return STOPS[below].map((part, n) => Math.round(part + (at - below) * (STOPS[below + 1][n] - part)));
  });
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

// Grey values [size × size] of the image, mirrored to both halves, and a canvas with their colours.
function read(image, size) {
  const sheet = canvasOf(size, size);
  const paper = sheet.getContext("2d", { willReadFrequently: true });
  paper.drawImage(image, 0, 0);
  const pixels = paper.getImageData(0, 0, size, size);
  const grey = new Uint8Array(size * size).fill(255);
  const palette = colours();
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const place = row < column ? row * size + column : column * size + row;
      const value = row === column ? 255 : pixels.data[4 * place];
      grey[row * size + column] = value;
    }
  }
  grey.forEach((value, place) => pixels.data.set([...palette[value], 255], 4 * place));
  paper.putImageData(pixels, 0, 0);
  return { grey, sheet };
}

async function show(box) {
  const names = [...document.querySelectorAll("#classes li")].map((item) => item.textContent);
  const size = names.length;
  const image = new Image();
  image.src = box.dataset.src;
  await image.decode();
  if (image.naturalWidth !== size) return;
  const { grey, sheet } = read(image, size);
  const [low, high, step] = ["low", "high", "step"].map((name) => Number(box.dataset[name]));
  const digits = step < 0.005 ? 3 : 2;

  const canvas = canvasOf(1, 1);
  const paper = canvas.getContext("2d");
  const beside = canvasOf(1, 1); // the row names, drawn once a row is tall enough
  beside.className = "names";
  const pen = beside.getContext("2d");
  box.querySelector("svg").replaceWith(canvas, beside);
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.setAttribute("aria-label", `Similarity of ${size} class texts; arrows move, + and - zoom, 0 shows all`);
  const status = document.createElement("p");
  status.className = "status";
  status.setAttribute("role", "status");
  status.textContent = "Point at the map, or focus it and use the arrow keys; + and − zoom, 0 shows all.";
  box.before(status);

  const view = { left: 0, top: 0, span: size };
  let cell = null; // selected [row, column]
  const closest = Math.min(size, MIN_SPAN);
  const within = (value, least, most) => Math.min(Math.max(value, least), most);

  function draw() {
    const scale = canvas.width / view.span;
    paper.imageSmoothingEnabled = scale < 1;
    paper.drawImage(sheet, view.left, view.top, view.span, view.span, 0, 0, canvas.width, canvas.height);
    drawNames(scale);
    if (!cell) return;
    const [y, x] = [(cell[0] - view.top) * scale, (cell[1] - view.left) * scale];
    const side = Math.max(scale, 3);
    for (const [width, colour] of [[4, "#000"], [2, "#fff"]]) {
      paper.lineWidth = width;
      paper.strokeStyle = colour;
      paper.strokeRect(x - 1, y - 1, side + 2, side + 2);
    }
  }

  function drawNames(scale) {
    pen.clearRect(0, 0, beside.width, beside.height);
    if (scale < 13 * devicePixelRatio) return;
    pen.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    pen.fillStyle = getComputedStyle(box).color;
    const last = Math.min(size, Math.ceil(view.top + view.span));
    for (let row = Math.floor(view.top); row < last; row++) {
      pen.fillText(names[row], 8 * devicePixelRatio, (row + 0.5 - view.top) * scale);
    }
  }

  function moveTo(span, row, column) {
    view.span = within(span, closest, size);
    view.left = within(column, 0, size - view.span);
    view.top = within(row, 0, size - view.span);
    box.classList.toggle("zoomed", view.span < size);
    draw();
  }

  // Zoom so that the cell under the point (a share of the view) stays there.
  function zoom(factor, shareX = 0.5, shareY = 0.5) {
    const [x, y] = [view.left + shareX * view.span, view.top + shareY * view.span];
    const span = within(view.span * factor, closest, size);
    moveTo(span, y - shareY * span, x - shareX * span);
  }

  function zoomAtCell(factor) {
    if (!cell) return zoom(factor);
    const share = (at, from) => within((at + 0.5 - from) / view.span, 0, 1);
    zoom(factor, share(cell[1], view.left), share(cell[0], view.top));
  }

  function select(row, column) {
    cell = [within(row, 0, size - 1), within(column, 0, size - 1)];
    const [a, b] = cell.map((place) => names[place]);
    const cosine = (low + ((high - low) * grey[cell[0] * size + cell[1]]) / 255).toFixed(digits);
    status.textContent = cell[0] === cell[1] ? `${a} with itself` : `${a} and ${b}: cosine ${cosine}`;
    draw();
  }

  const place = (event) => {
    const at = canvas.getBoundingClientRect();
    return [(event.clientX - at.left) / at.width, (event.clientY - at.top) / at.height];
  };
  let grip = null;
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    grip = { x, y, left: view.left, top: view.top };
    if (view.span < size) canvas.setPointerCapture(event.pointerId);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (grip = null));
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (grip && view.span < size) {
      moveTo(view.span, grip.top - (y - grip.y) * view.span, grip.left - (x - grip.x) * view.span);
    } else {
      select(Math.floor(view.top + y * view.span), Math.floor(view.left + x * view.span));
    }
  });
  canvas.addEventListener("click", (event) => {
    const [x, y] = place(event);
    select(Math.floor(view.top + y * view.span), Math.floor(view.left + x * view.span));
  });
  // The wheel zooms only while the map has the focus, so that scrolling past it still works.
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== box && !event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, ...place(event));
  }, { passive: false });

  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const move = moves[event.key];
    if (move) {
      const [row, column] = cell || [Math.floor(view.top), Math.floor(view.left)];
      const stride = cell ? (event.shiftKey ? 10 : 1) : 0;
      select(row + move[0] * stride, column + move[1] * stride);
      const follow = (from, at) => within(from, at + 1 - view.span, at);
      moveTo(view.span, follow(view.top, cell[0]), follow(view.left, cell[1]));
    } else if (event.key === "+" || event.key === "=") zoomAtCell(0.5);
    else if (event.key === "-") zoomAtCell(2);
    else if (event.key === "0" || event.key === "Home") moveTo(size, 0, 0);
    else return;
    event.preventDefault();
  });

  const tools = document.createElement("div");
  tools.className = "tools";
  for (const [text, act] of [
    ["Zoom in", () => zoomAtCell(0.5)],
    ["Zoom out", () => zoomAtCell(2)],
    ["Show all", () => moveTo(size, 0, 0)],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = text;
    button.addEventListener("click", act);
    tools.append(button);
  }
  status.before(tools);

  new ResizeObserver(() => {
    canvas.width = canvas.height = Math.round(canvas.clientWidth * devicePixelRatio);
    beside.width = Math.round(beside.clientWidth * devicePixelRatio);
    beside.height = canvas.height;
    draw();
  }).observe(canvas);
}

const box = document.getElementById("heat");
if (box) show(box).catch(() => {}); // on an error the plain image stays
