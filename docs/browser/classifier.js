// A classifier folder in a browser: photos to classes, with onnxruntime-web.
//
// A canvas resizes photos differently from Pillow, which changes pixels and sometimes the predicted
// class. So `squarePixels` resizes as Pillow does, in the same fixed-point arithmetic.

import * as ort from "onnxruntime-web";

export class Classifier {
  // The classifier in the folder at the URL `folder`, which ends with a slash.
  static async load(folder) {
    const manifest = JSON.parse(new TextDecoder().decode(await read(folder, "classifier.json")));
    if (manifest.format !== "enrich-distill classifier" || manifest.version !== 1) {
      throw new Error(`${folder}classifier.json has a different format version: export the classifier again`);
    }
    const bankName = Object.keys(manifest.files).find((name) => name.startsWith("text_bank"));
    const [model, bank] = await Promise.all([
      read(folder, manifest.image_encoder),
      read(folder, bankName),
    ]);
    return new Classifier(manifest, await ort.InferenceSession.create(model), tensors(bank));
  }

  constructor(manifest, session, bank) {
    this.manifest = manifest;
    this.session = session;
    this.bank = bank.tensor; // Float32Array [classes, dim]
    this.lookAlikes = bank.look_alikes; // Float32Array [look-alikes, dim]
  }

  // The `top` likeliest classes of `photo`, a File or Blob, best first: { key, name, probability,
  // cosine, seen }. `unknown`: the photo is likely of none of the classes.
  async classify(photo, top = 5) {
    const size = this.manifest.preprocessing.image_size;
    const pixels = new ort.Tensor("uint8", await squarePixels(photo, size), [1, 3, size, size]);
    const { features } = await this.session.run({ pixels });
    return this.rank(features.data, top);
  }

  // The same for the unit features [dim] of a photo.
  rank(features, top) {
    const { classes, calibration, look_alikes } = this.manifest;
    const cosine = (bank, row, offset = 0) =>
      bank
        .subarray(row * features.length, (row + 1) * features.length)
        .reduce((sum, value, index) => sum + value * features[index], offset);
    const cosines = classes.map(({ offset }, row) => cosine(this.bank, row, offset));
    const scores = classes.map(
      ({ seen }, row) => (cosines[row] - calibration.seen_bias * seen) / calibration.temperature,
    );
    const maxScore = Math.max(...scores);
    const exps = scores.map((score) => Math.exp(score - maxScore));
    const sum = exps.reduce((a, b) => a + b);
    const candidates = classes
      .map(({ key, name, seen }, row) => ({ key, name, seen, probability: exps[row] / sum, cosine: cosines[row] }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, top);
    const threshold = calibration.unknown_threshold ?? -Infinity;
    const others = look_alikes.map((_, row) => cosine(this.lookAlikes, row));
    const isLookAlike = Math.max(...others) > maxScore * calibration.temperature;
    return { candidates, unknown: isLookAlike || Math.max(...cosines) < threshold };
  }
}

async function read(folder, name) {
  const response = await fetch(folder + name);
  if (!response.ok) throw new Error(`${folder}${name} cannot be read (status ${response.status})`);
  return new Uint8Array(await response.arrayBuffer());
}

// The float32 tensors of a safetensors file by their names: length of the header, header, values.
function tensors(file) {
  const start = 8 + Number(new DataView(file.buffer).getBigUint64(0, true));
  const { __metadata__: _, ...header } = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
  const entries = Object.entries(header).map(([name, { data_offsets: [from, to] }]) => [
    name,
    new Float32Array(file.buffer.slice(start + from, start + to)),
  ]);
  return Object.fromEntries(entries);
}

// The centre square of `photo`, resized to side `size`: RGB planes, Uint8Array [3, size, size].
export async function squarePixels(photo, size) {
  const image = await createImageBitmap(photo); // upright and in sRGB
  const { width, height } = image;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // background of transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  image.close();
  const { data } = context.getImageData(0, 0, width, height);

  const shorter = Math.min(width, height);
  const weights = [width, height].map((side) => {
    const resized = Math.floor((size * side) / shorter);
    return cubicWeights(side, resized, roundHalfToEven((resized - size) / 2), size);
  });
  const pixels = new Uint8Array(3 * size * size);
  for (let channel = 0; channel < 3; channel += 1) {
    const plane = new Uint8ClampedArray(width * height);
    for (let i = 0; i < plane.length; i += 1) plane[i] = data[4 * i + channel];
    const columns = filterRows(plane, width, weights[0]);
    pixels.set(filterRows(columns, height, weights[1]), channel * size * size);
  }
  return pixels;
}

// Python's round().
function roundHalfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

const FRACTION_BITS = 22; // of the weights: Pillow's PRECISION_BITS

// For a side of `from` pixels resized to `to`: for each of the `count` output pixels from `start` on,
// the first input pixel that it depends on, and the weights of that pixel and of those after it.
function cubicWeights(from, to, start, count) {
  const scale = from / to;
  const stretch = Math.max(scale, 1); // averages when it shrinks
  const support = 2 * stretch;
  return Array.from({ length: count }, (_, index) => {
    const centre = (start + index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const raw = Array.from({ length: end - first }, (_, k) =>
      cubic((k + first - centre + 0.5) * (1 / stretch)),
    );
    const sum = raw.reduce((a, b) => a + b, 0);
    const fixed = raw.map((value) => (value / sum) * 2 ** FRACTION_BITS);
    return { first, weights: Int32Array.from(fixed, (value) => value + 0.5 * Math.sign(value)) };
  });
}

function cubic(x) {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

// The rows of `plane` [rows, width], each a weighted sum of its pixels: [outputs, rows], transposed.
function filterRows(plane, width, outputs) {
  const rows = plane.length / width;
  const result = new Uint8ClampedArray(outputs.length * rows);
  for (let row = 0; row < rows; row += 1) {
    for (let output = 0; output < outputs.length; output += 1) {
      const { first, weights } = outputs[output];
      const start = row * width + first;
      let sum = 1 << (FRACTION_BITS - 1);
      for (let k = 0; k < weights.length; k += 1) sum += plane[start + k] * weights[k];
      result[output * rows + row] = sum >> FRACTION_BITS;
    }
  }
  return result;
}
