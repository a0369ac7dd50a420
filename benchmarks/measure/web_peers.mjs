// Decoders of other formats in WebAssembly beside ours, in Node: the same picture, in turns, on one thread. Ours on
// two, too.
//
//   npm install --prefix PEERS @jsquash/avif @jsquash/jxl
//   python web/build.py && node benchmarks/measure/web_peers.mjs PEERS build/web PICTURE.dca PICTURE.avif PICTURE.jxl
//
// PEERS has libavif (with dav1d) and libjxl as those packages build them. A ratio is the median over turns; what is loaded
// is module, its script and, of ours, the weights, with gzip.
import {readFile, readdir} from 'node:fs/promises';
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';
import {gzipSync} from 'node:zlib';

const TURNS = 15;
const [peers, web, ...files] = process.argv.slice(2);
if (files.length !== 3) {
  console.error('usage: node web_peers.mjs PEERS WEB PICTURE.dca PICTURE.avif PICTURE.jxl');
  process.exit(2);
}
globalThis.ImageData ??= class { constructor(data, width, height) { Object.assign(this, {data, width, height}); } };
const read = async path => new Uint8Array(await readFile(path));
const load = path => import(pathToFileURL(path));
const median = values => values.sort((a, b) => a - b)[values.length >> 1];

async function peer(name) {
  const folder = `${peers}/node_modules/@jsquash/${name}`, codec = `${folder}/codec/dec/${name}_dec`;
  const {init, default: decode} = await load(`${folder}/decode.js`);
  await init(await WebAssembly.compile(await read(`${codec}.wasm`)));
  const {version} = createRequire(import.meta.url)(pathToFileURL(`${folder}/package.json`).pathname);
  return {name: `@jsquash/${name} ${version}`, decode: file => decode(file.buffer), parts: [`${codec}.wasm`, `${codec}.js`]};
}

async function ours(name, threads) {
  const [model] = await readdir(`${web}/models`);
  const {compile, Decoder, rgba} = await load(`${web}/dca.js`);
  const module = `${web}/${threads > 1 ? 'dca-threads' : 'dca'}.wasm`, weights = `${web}/models/${model}`;
  const decoder = await Decoder.create(await compile(await read(module)), await read(weights), {threads});
  return {name, decode: file => rgba(decoder.decode(file)), parts: [module, `${web}/dca.js`, weights]};
}

const codecs = [await ours('dca-fast', 1), await peer('avif'), await peer('jxl'), await ours('dca-fast, 2 threads', 2)];
const inputs = await Promise.all([...files, files[0]].map(read));
const times = codecs.map(() => []);
for (let turn = -2; turn < TURNS; ++turn) {
  for (const [i, codec] of codecs.entries()) {
    const begin = performance.now();
    await codec.decode(inputs[i]);
    if (turn >= 0) times[i].push(performance.now() - begin);
  }
}
for (const [i, {name, parts}] of codecs.entries()) {
  const sizes = await Promise.all(parts.map(async part => gzipSync(await read(part)).length));
  const to = other => Number(median(times[i].map((ms, turn) => ms / times[other][turn])).toFixed(2));
  console.log(JSON.stringify({
    name,
    file_bytes: inputs[i].length,
    loaded_bytes: sizes.reduce((a, b) => a + b),
    milliseconds: Math.round(median(times[i])),
    to_avif: to(1),
    to_one_thread: i === 3 ? to(0) : undefined,
  }));
}
console.log(JSON.stringify({node: process.version, turns: TURNS}));
