// What a page uses: files to pictures, decoded by a worker that all of it shares.

import {DcaError} from './dca.js';

let worker = null, next = 0;
const waiting = new Map();

function start() {
  worker = new Worker(new URL('./worker.js', import.meta.url), {type: 'module'});
  worker.onmessage = ({data: {id, picture, error, progress}}) => {
    const {resolve, reject, onprogress} = waiting.get(id) ?? {};
    if (resolve === undefined) return; // nobody wants it any more
    if (progress) return onprogress?.(progress);
    waiting.delete(id);
    if (error) reject(new DcaError(error.kind, error.message));
    else resolve(picture);
  };
  worker.onerror = event => { // it could not even be loaded
    for (const {reject} of waiting.values()) reject(new DcaError('NotAvailable', event.message || 'no worker'));
    waiting.clear();
    worker.terminate();
    worker = null;
  };
}

/**
 * Decodes a file.
 * @param {string | URL | Blob | ArrayBuffer | Uint8Array} source a file, or its address
 * @param {{onprogress?: (p: {loaded: number, total: number}) => void, signal?: AbortSignal, reduce?: number,
 *   threads?: number}} options
 *   onprogress: bytes of the model's weights, the first time they are needed; total is 0 where the server does not say.
 *   reduce: 2, 4, 8 or 16 for a preview with a pixel for so many by so many. threads: at most so many; default: as many
 *   as there are, up to 8, in a page that is isolated from other origins, else 1
 * @returns {Promise<object>} as of `Decoder.inspect`, and rgba (Uint8ClampedArray), bytes, milliseconds, threads
 * @throws {DcaError} a bad file; TypeError: it cannot be fetched, or is none of these; what `signal` says
 */
export async function decode(source, {onprogress, signal, reduce = 1, threads} = {}) {
  const file = await contentOf(source, signal);
  if (signal?.aborted) throw reasonOf(signal);
  if (worker === null) start();
  const id = next++, own = worker;
  own.postMessage({id, file, reduce, threads}, [file]);
  let stop;
  try {
    return await new Promise((resolve, reject) => {
      waiting.set(id, {resolve, reject, onprogress});
      stop = () => {
        own.postMessage({id, abort: true});
        reject(reasonOf(signal));
      };
      signal?.addEventListener('abort', stop);
    });
  } finally {
    waiting.delete(id);
    signal?.removeEventListener('abort', stop);
  }
}

const reasonOf = signal => signal.reason ?? new DOMException('the decoding was aborted', 'AbortError');

async function contentOf(source, signal) {
  // Objects of other windows are of other classes.
  if (typeof source?.arrayBuffer === 'function') return source.arrayBuffer();
  const kind = Object.prototype.toString.call(source);
  if (ArrayBuffer.isView(source) || kind === '[object ArrayBuffer]' || kind === '[object SharedArrayBuffer]') {
    const bytes = ArrayBuffer.isView(source) ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
      : new Uint8Array(source);
    return Uint8Array.from(bytes).buffer; // of its own, to be handed over
  }
  if (typeof source !== 'string' && kind !== '[object URL]') {
    throw new TypeError('a file is an address, a Blob, an ArrayBuffer or a view of one');
  }
  const response = await fetch(source, {signal});
  if (!response.ok) throw new TypeError(`${source}: ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}

/** The orientation that EXIF says, 1 to 8; 1 where it says none. The pixels of a picture do not have it yet. */
export function orientation(exif) {
  if (!exif || exif.length < 14) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength), little = view.getUint16(0) === 0x4949;
  const first = view.getUint32(4, little);
  if (first + 2 > exif.length) return 1;
  for (let i = 0, at = first + 2; i < view.getUint16(first, little) && at + 12 <= exif.length; ++i, at += 12) {
    if (view.getUint16(at, little) !== 0x0112) continue;
    const value = view.getUint16(at + 8, little);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

/**
 * Draws a picture on a canvas, which gets its size, upright as EXIF says.
 * @throws {DcaError} LimitExceeded: the browser has no canvas of this size
 */
export function draw(picture, canvas) {
  const {width, height} = picture, turned = orientation(picture.exif);
  const image = new ImageData(picture.rgba, width, height), sideways = turned > 4;
  canvas.width = sideways ? height : width;
  canvas.height = sideways ? width : height;
  const context = canvas.getContext('2d');
  if (canvas.width * canvas.height > SMALL) checkIsDrawn(context);
  if (turned === 1) return context.putImageData(image, 0, 0);
  const flat = new OffscreenCanvas(width, height);
  flat.getContext('2d').putImageData(image, 0, 0);
  const w = width, h = height;
  const matrices = [[1, 0, 0, 1, 0, 0], [-1, 0, 0, 1, w, 0], [-1, 0, 0, -1, w, h], [1, 0, 0, -1, 0, h],
    [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, h, 0], [0, -1, -1, 0, h, w], [0, -1, 1, 0, 0, w]];
  context.setTransform(...matrices[turned - 1]);
  context.drawImage(flat, 0, 0);
  context.resetTransform();
}

const SMALL = 1 << 24; // pixels, which any canvas holds

// Browsers draw nothing on a canvas that is too large for them, and say nothing.
function checkIsDrawn(context) {
  const {width, height} = context.canvas, x = width - 1, y = height - 1;
  context.fillRect(x, y, 1, 1);
  if (context.getImageData(x, y, 1, 1).data[3] === 0) {
    throw new DcaError('LimitExceeded', `this browser draws no ${width} x ${height} pixels; reduce makes fewer`);
  }
  context.clearRect(x, y, 1, 1);
}
