// The page: samples and dropped files, decoded and compared.

import {decode, draw} from './client.js';

const $ = id => document.getElementById(id);
let shown = null; // {name, others: [{name, canvas, bytes}], picture, canvas, original}
let turn = 0; // whoever started last shows

function say(text, wrong = false) {
  $('message').textContent = text;
  $('message').classList.toggle('wrong', wrong);
}

function progress({loaded, total}) {
  const bar = $('progress');
  bar.hidden = false;
  if (total) bar.max = total, bar.value = loaded;
  else bar.removeAttribute('value');
  say(`Weights of the model: ${(loaded / 1e6).toFixed(1)} MB, once`);
}

async function canvasOf(source) {
  const bitmap = await createImageBitmap(source), canvas = document.createElement('canvas');
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  return canvas;
}

const blobOf = (canvas, type, quality) => new Promise(resolve => canvas.toBlob(resolve, type, quality));

// The largest JPEG of so many bytes that this browser makes; the smallest there is if none is as small.
async function jpegOf(canvas, bytes) {
  let best = await blobOf(canvas, 'image/jpeg', 0.01), low = 1;
  for (let high = 100; low < high;) {
    const middle = (low + high + 1) >> 1, blob = await blobOf(canvas, 'image/jpeg', middle / 100);
    if (blob.size <= bytes) best = blob, low = middle;
    else high = middle - 1;
  }
  return {name: `JPEG, quality ${low}`, canvas: await canvasOf(best), bytes: best.size};
}

function psnr(canvas, original) {
  const pixels = c => c.getContext('2d', {willReadFrequently: true}).getImageData(0, 0, c.width, c.height).data;
  const a = pixels(canvas), b = pixels(original);
  let sum = 0;
  for (let i = 0; i < a.length; ++i) if (i % 4 < 3) sum += (a[i] - b[i]) ** 2;
  return sum === 0 ? 'exact' : `${(10 * Math.log10(255 ** 2 / (sum / (a.length / 4 * 3)))).toFixed(2)} dB`;
}

function compare() {
  const other = shown.others[$('other').selectedIndex], left = $('left');
  left.width = other.canvas.width;
  left.height = other.canvas.height;
  left.getContext('2d').drawImage(other.canvas, 0, 0);
  $('left-name').textContent = other.name;
}

function show() {
  const {picture, others, original, canvas, name} = shown, pixels = picture.width * picture.height;
  const right = $('right');
  right.width = canvas.width;
  right.height = canvas.height;
  right.getContext('2d').drawImage(canvas, 0, 0);
  $('right-name').textContent = `dca, ${picture.exact ? 'exact' : `quality ${picture.quality}`}`;
  $('other').replaceChildren(...others.map(({name}) => new Option(name)));
  const note = `decoded in ${Math.round(picture.milliseconds)} ms`, rows = [{name, canvas, bytes: picture.bytes, note}, ...others];
  $('facts').tBodies[0].replaceChildren(...rows.map(row => {
    const cells = [row.name, row.bytes.toLocaleString('en'), (8 * row.bytes / pixels).toFixed(3),
      original ? psnr(row.canvas, original) : '', row.note ?? ''];
    const tr = document.createElement('tr');
    tr.append(...cells.map(text => Object.assign(document.createElement('td'), {textContent: text})));
    return tr;
  }));
  $('slider').hidden = $('facts').hidden = false;
  $('save').disabled = false;
  compare();
}

async function open(source, name, rest) {
  const mine = ++turn;
  say('Decoding');
  try {
    const picture = await decode(source, {onprogress: progress}), canvas = document.createElement('canvas');
    draw(picture, canvas);
    const found = await rest(picture, canvas);
    if (mine !== turn) return;
    shown = {name, picture, canvas, ...found};
    show();
    say(`${picture.width} x ${picture.height}, ${picture.channels} channels of ${picture.depth} bits`);
    document.documentElement.dataset.shown = name;
  } catch (error) {
    if (mine !== turn) return;
    say(`${name}: ${error.kind ?? error.name}: ${error.message}`, true);
    document.documentElement.dataset.failed = error.kind ?? error.name;
  } finally {
    $('progress').hidden = true;
  }
}

// There is no original of a file that someone brings: JPEG is made of the decoded picture.
const openFile = file => open(file, file.name, async (picture, canvas) => {
  const jpeg = await jpegOf(canvas, picture.bytes);
  return {others: [{...jpeg, name: `${jpeg.name}, of the decoded picture`}]};
});

async function openSample(sample) {
  for (const button of $('samples').children) button.setAttribute('aria-pressed', button.sample === sample);
  const path = name => new URL(`samples/${name}`, import.meta.url);
  const blob = async name => (await fetch(path(name))).blob();
  await open(path(sample.file), `dca, quality ${sample.quality}`, async () => {
    const file = await blob(sample.original), original = await canvasOf(file);
    const others = [];
    for (const kind of ['jpeg', 'avif']) {
      const name = `${kind.toUpperCase()}, quality ${sample[`${kind}_quality`]}`;
      try {
        const data = await blob(sample[kind]);
        others.push({name, canvas: await canvasOf(data), bytes: data.size});
      } catch { // this browser does not show it
      }
    }
    others.push({name: 'original, PNG', canvas: original, bytes: file.size});
    return {others, original};
  });
}

async function start() {
  $('file').onchange = () => $('file').files[0] && openFile($('file').files[0]);
  $('other').onchange = compare;
  $('cut').oninput = () => document.querySelector('.stage').style.setProperty('--cut', `${$('cut').value / 10}%`);
  $('save').onclick = async () => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(await blobOf($('right'), 'image/png'));
    link.download = 'picture.png';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000); // some browsers read it later
  };
  document.ondragover = event => { event.preventDefault(); document.body.classList.add('over'); };
  document.ondragleave = () => document.body.classList.remove('over');
  document.ondrop = event => {
    event.preventDefault();
    document.body.classList.remove('over');
    if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  };
  const response = await fetch(new URL('samples/samples.json', import.meta.url)).catch(() => null);
  if (!response?.ok) return say('There are no samples here: open a file.');
  const samples = await response.json();
  $('samples').replaceChildren(...samples.map(sample => {
    const button = Object.assign(document.createElement('button'), {sample, textContent: `${sample.name}, quality ${sample.quality}`});
    button.onclick = () => openSample(sample);
    return button;
  }));
  const wanted = new URLSearchParams(location.search).get('sample');
  await openSample(samples.find(sample => sample.file === `${wanted}.dca`) ?? samples.find(({quality}) => quality === 30) ?? samples[0]);
  $('element').src = `samples/${samples.at(-1).file}`;
}

start();
