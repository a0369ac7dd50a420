// Decodes beside the page: a module worker with one decoder for each model, whose weights are fetched once.
//
// In:  {id, file: ArrayBuffer, reduce}
// Out: {id, picture} with `inspect`'s values, rgba (its buffer is handed over), bytes and milliseconds;
//      {id, error: {kind, message}}; {id, progress: {loaded, total}} while weights are fetched

import {compile, Decoder, DcaError, rgba} from './dca.js';

const CACHE = 'dca-models';
const decoders = new Map(); // promises, by model; '' for files without one
const compiled = fetch(new URL('dca.wasm', import.meta.url)).then(compile);
compiled.catch(() => {}); // said where it is used

const modelUrl = model => new URL(`models/${model}.safetensors`, import.meta.url);

async function content(response, progress) {
  const total = Number(response.headers.get('content-length')) || 0, parts = [];
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
  const response = await fetch(url);
  if (!response.ok) throw new DcaError('UnknownModel', `there are no weights of model ${model} here`);
  const weights = await content(response, progress);
  return {weights, keep: () => cache?.put(url, new Response(weights)).catch(() => {})}; // a full disk stops nothing
}

async function make(model, progress) {
  if (model === '') return new Decoder(await compiled);
  const [module, {weights, keep}] = await Promise.all([compiled, weightsOf(model, progress)]);
  const decoder = new Decoder(module, weights);
  if (decoder.model !== model) throw new DcaError('BadWeights', `the weights of model ${model} are other ones`);
  await keep();
  return decoder;
}

function decoderOf(model, progress) {
  if (!decoders.has(model)) {
    const made = make(model, progress);
    decoders.set(model, made);
    made.catch(() => decoders.delete(model)); // the next file tries again
  }
  return decoders.get(model);
}

self.onmessage = async ({data: {id, file, reduce}}) => {
  try {
    const bytes = new Uint8Array(file), progress = progress => self.postMessage({id, progress});
    const {exact, model} = (await decoderOf('', progress)).inspect(bytes);
    const decoder = await decoderOf(exact ? '' : model, progress);
    const start = performance.now(), picture = decoder.decode(bytes, {reduce});
    picture.milliseconds = performance.now() - start;
    picture.bytes = bytes.length;
    picture.rgba = rgba(picture);
    delete picture.samples;
    self.postMessage({id, picture}, [picture.rgba.buffer]);
  } catch (error) {
    self.postMessage({id, error: {kind: error.kind ?? error.name, message: error.message}});
  }
};
