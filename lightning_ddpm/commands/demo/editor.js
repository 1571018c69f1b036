// The inpainting editor: an image of the model's size in which pixels are painted over, by mouse, pen or finger.
//
// props.value is {image: a PNG as a data URL, mask: one character per pixel, row by row, "1" where it is painted}.
// `element`, `props` and `watch` come from gradio.
const { width, height } = element.querySelector(".editor").dataset;
const w = Number(width), h = Number(height);
const canvas = element.querySelector("canvas"), brush = element.querySelector(".brush");
const erase = element.querySelector(".erase"), context = canvas.getContext("2d");
let image = null, mask = new Uint8Array(w * h), last = null;

function show() {
  context.clearRect(0, 0, w, h);
  if (image) context.drawImage(image, 0, 0, w, h);
  context.fillStyle = "rgba(255, 110, 0, 0.75)";
  mask.forEach((painted, at) => painted && context.fillRect(at % w, Math.floor(at / w), 1, 1));
}

function load(url) {
  if (!url || (image && image.src === url)) return;
  const loaded = new Image();
  loaded.onload = () => { image = loaded; show(); };
  loaded.src = url;
}

function publish(url) {
  props.value = { image: url ?? (image ? image.src : ""), mask: mask.join("") };
}

function paint(x, y) {
  const radius = Number(brush.value) / 2;
  for (let row = 0; row < h; row++)
    for (let column = 0; column < w; column++) {
      const near = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius;
      const inside = Math.floor(x) === column && Math.floor(y) === row;
      if (near || inside) mask[row * w + column] = erase.checked ? 0 : 1;
    }
}

function stroke(event) {
  const box = canvas.getBoundingClientRect();
  const to = [(event.clientX - box.left) / box.width * w, (event.clientY - box.top) / box.height * h];
  const from = last ?? to, pieces = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let piece = 1; piece <= pieces; piece++)
    paint(...[0, 1].map((axis) => from[axis] + (to[axis] - from[axis]) * piece / pieces));
  last = to;
  show();
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  last = null;
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && stroke(event));
canvas.addEventListener("pointerup", () => publish());
canvas.addEventListener("pointercancel", () => publish());

element.querySelector(".clear").addEventListener("click", () => {
  mask.fill(0);
  show();
  publish();
});

// A file of the visitor's is cut to the model's shape here, and only its pixels are sent.
element.querySelector(".file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  const opened = await createImageBitmap(file).catch(() => null);
  element.querySelector(".wrong").textContent = opened ? "" : `${file.name} is not an image that this browser opens`;
  if (!opened) return;
  const scale = Math.max(w / opened.width, h / opened.height), copy = document.createElement("canvas");
  copy.width = w;
  copy.height = h;
  const small = copy.getContext("2d");
  small.imageSmoothingQuality = "high";
  small.fillStyle = "white";
  small.fillRect(0, 0, w, h);
  const [across, down] = [opened.width * scale, opened.height * scale];
  small.drawImage(opened, (w - across) / 2, (h - down) / 2, across, down);
  const url = copy.toDataURL("image/png");
  load(url);
  publish(url);
});

function receive() {
  const { image: url, mask: painted } = props.value ?? {};
  if (painted !== undefined && painted !== mask.join("")) {
    mask = Uint8Array.from({ length: w * h }, (_, at) => painted[at] === "1" ? 1 : 0);
    show();
  }
  load(url);
}
watch("value", receive);
receive();
