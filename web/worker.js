// Decodes beside the page: a module worker with one decoder for each model, whose weights are fetched once. In pages
// that are isolated from other origins helpers share the work.
//
// In:  {id, file: ArrayBuffer, reduce, threads: at most so many}; {id, abort: true}: nobody wants it any more
// Out: {id, picture} with `inspect`'s values, rgba (its buffer is handed over), bytes and milliseconds;
//      {id, error: {kind, message}}; {id, progress: {loaded, total}} while weights are fetched

import {compile, Decoder, DcaError, rgba} from './dca.js';

const CACHE = 'dca-models';
const MOST_THREADS = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
const decoders = new Map(); // promises, by threads and model; '' for files without one, which one thread decodes
const modules = new Map(); // promises, by name

function compiled(name) {
  if (!modules.has(name)) {
    const made = fetched(new URL(name, import.meta.url)).then(compile);
    modules.set(name, made);
    made.catch(() => modules.delete(name)); // the next file tries again
  }
  return modules.get(name);
}

// `absent`: what is thrown where there is no such file.
async function fetched(url, absent) {
  const response = await fetch(url).catch(error => { throw new DcaError('NotAvailable', `${url}: ${error.message}`); });
  if (absent && [404, 410].includes(response.status)) throw absent;
  if (!response.ok) throw new DcaError('NotAvailable', `${url}: ${response.status} ${response.statusText}`);
  return response;
}

const modelUrl = model => new URL(`models/${model}.safetensors`, import.meta.url);

async function content(response, progress) {
  const packed = response.headers.has('content-encoding'); // then the length is another one
  const total = packed ? 0 : Number(response.headers.get('content-length')) || 0, parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    progress({loaded: loaded += value.length, total});
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// A model's name says what is in it, so that a copy in the cache never is an old one.
async function weightsOf(model, progress) {
  const url = modelUrl(model), cache = await self.caches?.open(CACHE).catch(() => undefined);
  const kept = await cache?.match(url);
  if (kept) return {weights: await content(kept, progress), keep: () => {}};
  const response = await fetched(url, new DcaError('UnknownModel', `there are no weights of model ${model} here`));
  const weights = await content(response, progress);
  return {weights, keep: () => cache?.put(url, new Response(weights)).catch(() => {})}; // a full disk stops nothing
}

// Where helpers or their memory are not to be had, one thread does the work.
async function decoderWith(weights, threads) {
  if (MOST_THREADS > 1) {
    const made = compiled('dca-threads.wasm').then(module => Decoder.create(module, weights, {threads}));
    const decoder = await made.catch(() => null);
    if (decoder !== null) return decoder;
  }
  return new Decoder(await compiled('dca.wasm'), weights);
}

async function make(model, threads, progress) {
  if (model === '') return decoderWith(null, 1);
  const {weights, keep} = await weightsOf(model, progress);
  const decoder = await decoderWith(weights, threads);
  if (decoder.model !== model) throw new DcaError('BadWeights', `the weights of model ${model} are other ones`);
  await keep();
  return decoder;
}

function decoderOf(model, threads, progress) {
  const key = `${threads} ${model}`;
  if (!decoders.has(key)) {
    const made = make(model, threads, progress);
    decoders.set(key, made);
    made.catch(() => decoders.delete(key)); // the next file tries again
  }
  return decoders.get(key);
}

const wanted = new Set(); // ids

self.onmessage = async ({data: {id, file, reduce, threads = MOST_THREADS, abort = false}}) => {
  if (abort) return void wanted.delete(id);
  wanted.add(id);
  try {
    const bytes = new Uint8Array(file), progress = progress => self.postMessage({id, progress});
    const {exact, model} = (await decoderOf('', 1, progress)).inspect(bytes);
    const most = Math.min(threads, MOST_THREADS);
    const decoder = await (exact ? decoderOf('', 1, progress) : decoderOf(model, most, progress));
    await new Promise(resolve => setTimeout(resolve)); // what came meanwhile may say that nobody wants it
    if (!wanted.has(id)) return;
    const start = performance.now(), picture = decoder.decode(bytes, {reduce});
    picture.milliseconds = performance.now() - start;
    picture.bytes = bytes.length;
    picture.rgba = rgba(picture);
    delete picture.samples;
    self.postMessage({id, picture}, [picture.rgba.buffer]);
  } catch (error) {
    self.postMessage({id, error: {kind: error.kind ?? 'NotAvailable', message: error.message}});
  } finally {
    wanted.delete(id);
  }
};
