// The decoder of .dca pictures in WebAssembly: bytes to pixels, wherever JavaScript runs. worker.js and dca-image.js
// use it in a page; in Node it is used as it is. Everything here is synchronous but `compile` and `Decoder.create`.

export const KINDS = [
  '', 'NotADcaFile', 'UnsupportedVersion', 'UnknownModel', 'TruncatedStream', 'CorruptStream', 'LimitExceeded',
  'BadWeights', 'BadArgument', 'NotAvailable', 'OutOfMemory',
];

/** What is wrong with a file; `kind` is one of KINDS, as the exceptions of Python are called. */
export class DcaError extends Error {
  constructor(kind, message) {
    super(message);
    this.name = 'DcaError';
    this.kind = kind;
  }
}

/** Compiles the module: of its bytes, or of a Response. */
export async function compile(source) {
  return source instanceof Response ? WebAssembly.compileStreaming(source) : WebAssembly.compile(source);
}

/** What an instance imports: functions, and of dca-threads.wasm the memory. `fail` must throw. */
export function imports(fail, memory) {
  const none = () => 8; // files there are none
  return {dca: {fail}, wasi_snapshot_preview1: {fd_close: none, fd_seek: none, fd_write: none}, env: {memory}};
}

// Pages of 64 KiB, as web/build.py links dca-threads.wasm; bytes of the stack that a helper has.
const SHARED = {initial: 512, maximum: 65535, shared: true};
const STACK = 1 << 20;

// Workers of helper.js, once they have loaded it. In Node they do not keep the process.
async function startHelpers(count) {
  const address = new URL('./helper.js', import.meta.url), node = typeof Worker === 'undefined';
  const Class = node ? (await import(/* webpackIgnore: true */ 'node:worker_threads')).Worker : Worker;
  const workers = Array.from({length: count}, () => new Class(address, {type: 'module', execArgv: []}));
  const ready = worker => new Promise((resolve, reject) => {
    const failed = event => reject(new DcaError('NotAvailable', `no worker: ${event.message || 'not loaded'}`));
    if (node) worker.on('message', resolve).on('error', failed);
    else Object.assign(worker, {onmessage: resolve, onerror: event => {
      event.preventDefault(); // it is no error of the page: one helper less
      failed(event);
    }});
  });
  try {
    await Promise.all(workers.map(ready));
  } catch (error) {
    for (const worker of workers) worker.terminate();
    throw error;
  }
  if (node) workers.forEach(worker => worker.unref());
  return workers;
}

/** Engines do not count memory that is shared when they decide to collect what is given up: this they count. */
export function givenUp(memory) {
  try {
    new ArrayBuffer(memory.buffer.byteLength);
  } catch {
    // there is so little left that they collect it anyway
  }
}

// An ArrayBuffer, or any view of one, as bytes; also of other windows, whose classes are others.
function bytesOf(source, what) {
  if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  if (/^\[object (Shared)?ArrayBuffer\]$/.test(Object.prototype.toString.call(source))) return new Uint8Array(source);
  throw new DcaError('BadArgument', `${what} must be a Uint8Array or an ArrayBuffer`);
}

// An instance keeps what a large picture needed; a new one is made instead of keeping more than this.
const MOST_BYTES = 256 << 20;
// Of dca_info in csrc/decoder/dca.h, with pointers of four bytes.
const INFO = {bytes: 60, width: 0, height: 4, channels: 8, depth: 12, quality: 16, exact: 20, model: 24, blocks: 28, icc: 36, exif: 44, xmp: 52};

/** A decoder with the weights of one model, or with none: then it reads files without a model alone. */
export class Decoder {
  #module;
  #weights;
  #maxPixels;
  #isa;
  #helpers;
  #wasm = null;
  #handle = 0;

  /**
   * @param {WebAssembly.Module} module of `compile`
   * @param {Uint8Array | ArrayBuffer | null} weights a file of weights; it is kept
   * @param {{maxPixels?: number, isa?: string}} options larger pictures are refused, default: 2^26; "scalar" instead of
   *   vectors, which changes no pixel
   * @throws {DcaError} weights that are damaged, or no bytes; maxPixels that is no number of at least 1
   */
  constructor(module, weights = null, {maxPixels = 2 ** 26, isa = 'wasm', helpers = []} = {}) {
    if (!(maxPixels >= 1)) throw new DcaError('BadArgument', 'maxPixels must be a number of at least 1');
    this.#module = module;
    this.#weights = weights === null ? null : bytesOf(weights, 'weights');
    this.#maxPixels = Math.min(Math.floor(maxPixels), 65535 ** 2); // more pixels no file has
    this.#isa = isa;
    this.#helpers = helpers; // of `create`
    this.#run(() => {});
  }

  /**
   * The same on several threads, which changes no pixel: the one that calls, and workers that help it until `close`. It
   * must be allowed to wait, as workers and Node are; in browsers pages must be isolated from other origins.
   * @param {WebAssembly.Module} module dca-threads.wasm
   * @param {Uint8Array | ArrayBuffer | null} weights
   * @param {{threads?: number, maxPixels?: number, isa?: string}} options 1 to 64 threads, default: 1
   * @returns {Promise<Decoder>}
   * @throws {DcaError} also NotAvailable: there are no such workers or no such memory here
   */
  static async create(module, weights = null, {threads = 1, ...options} = {}) {
    if (!(Number.isInteger(threads) && threads >= 1 && threads <= 64)) {
      throw new DcaError('BadArgument', 'threads must be 1 to 64');
    }
    if (threads > 1 && !sharesMemory(module)) throw new DcaError('BadArgument', 'threads take dca-threads.wasm');
    if (threads > 1 && typeof document !== 'undefined') throw new DcaError('NotAvailable', 'a page must not wait');
    if (threads > 1 && globalThis.crossOriginIsolated === false) {
      throw new DcaError('NotAvailable', 'no memory is shared where pages are not isolated from other origins');
    }
    const helpers = threads > 1 ? await startHelpers(threads - 1) : [];
    try {
      return new Decoder(module, weights, {...options, helpers});
    } catch (error) {
      for (const worker of helpers) worker.terminate();
      throw error;
    }
  }

  /** Ends the helpers. The decoder works on, alone. */
  close() {
    this.#giveUp();
    for (const worker of this.#helpers) worker.terminate();
    this.#helpers = [];
  }

  /** The model that it holds, eight hexadecimal digits; zeros without one. */
  get model() {
    return this.#run(wasm => this.#with(4, null, at => {
      wasm.dca_decoder_model(this.#handle, at);
      return hexadecimal(this.#bytes(at, 4));
    }));
  }

  /**
   * What a file says, verified but not decoded: width, height, channels (1 gray, 3 RGB, one more for alpha), depth,
   * quality, exact, model, graphicBlocks, and icc, exif, xmp as bytes or null.
   * @param {Uint8Array | ArrayBuffer} file
   * @throws {DcaError}
   */
  inspect(file) {
    file = bytesOf(file, 'a file');
    return this.#run(wasm => this.#with(file.length, file, from => this.#with(INFO.bytes, null, info => {
      wasm.dca_inspect(from, file.length, info, 0);
      return this.#info(info);
    })));
  }

  /**
   * Decodes a file: what `inspect` gives, `samples`, by rows, pixels and channels, Uint8Array or Uint16Array, and
   * `threads`, how many there were to decode it: helpers need a moment to begin.
   * @param {Uint8Array | ArrayBuffer} file
   * @param {{reduce?: number}} options 2, 4, 8 or 16: a preview with a pixel for so many by so many; width and height are
   *   those of the preview. 8 and 16 take some 60 % of the time
   * @throws {DcaError}
   */
  decode(file, {reduce = 1} = {}) {
    file = bytesOf(file, 'a file');
    return this.#run(wasm => this.#with(file.length, file, from => this.#with(INFO.bytes + 4, null, info => {
      const pixels = info + INFO.bytes;
      wasm.dca_decode_preview(this.#handle, from, file.length, reduce, info, pixels, 0);
      const picture = this.#info(info), at = this.#word(pixels);
      const bytes = this.#bytes(at, picture.width * picture.height * picture.channels * picture.depth / 8);
      picture.samples = picture.depth === 16 ? new Uint16Array(bytes.buffer) : bytes;
      picture.threads = wasm.dca_threads?.() ?? 1;
      wasm.dca_free(at);
      return picture;
    })));
  }

  // Runs `work` with an instance. What fails in it leaves the instance in the middle of something: it goes.
  #run(work) {
    try {
      if (this.#wasm === null) this.#start();
      const result = work(this.#wasm);
      if (this.#wasm.memory.buffer.byteLength > MOST_BYTES) this.#giveUp();
      return result;
    } catch (error) {
      this.#giveUp();
      if (error instanceof DcaError) throw error;
      if (error instanceof RangeError || error instanceof WebAssembly.RuntimeError) {
        throw new DcaError('OutOfMemory', `the decoder stopped: ${error.message}`);
      }
      throw error;
    }
  }

  #giveUp() {
    const wasm = this.#wasm;
    this.#wasm = null;
    if (wasm?.dca_end) {
      wasm.dca_end(); // its helpers wait for another one
      givenUp(wasm.memory);
    }
  }

  #start() {
    const refuse = (status, message) => { throw new DcaError(KINDS[status], this.#text(message)); };
    const memory = sharesMemory(this.#module) ? new WebAssembly.Memory(SHARED) : undefined;
    this.#wasm = new WebAssembly.Instance(this.#module, imports(refuse, memory)).exports;
    this.#wasm._initialize();
    for (const worker of this.#helpers) {
      const stack = this.#reserved(STACK) + STACK, variables = this.#reserved(this.#wasm.__tls_size.value);
      worker.postMessage({module: this.#module, memory, stack, variables});
    }
    const size = this.#weights?.length ?? 0;
    // dca_options: threads, four bytes that align the next, the most pixels, the instruction set
    const isa = new TextEncoder().encode(`${this.#isa}\0`);
    this.#with(isa.length, isa, name => this.#with(28, null, options => {
      const view = new DataView(this.#wasm.memory.buffer);
      for (let i = 0; i < 28; i += 4) view.setUint32(options + i, 0, true);
      view.setBigUint64(options + 8, BigInt(this.#maxPixels), true);
      view.setUint32(options + 16, name, true);
      const made = options + 24;
      const open = from => this.#wasm.dca_decoder_new(from, size, options, made, 0);
      if (this.#weights === null) open(0);
      else this.#with(size, this.#weights, open);
      this.#handle = this.#word(made);
    }));
  }

  #reserved(size) {
    const at = this.#wasm.malloc(Math.max(1, size));
    if (at === 0) throw new DcaError('OutOfMemory', `there are no ${size} bytes of memory`);
    return at;
  }

  // Calls `use` with memory of so many bytes, filled with `content`.
  #with(size, content, use) {
    const at = this.#reserved(size);
    if (content !== null) new Uint8Array(this.#wasm.memory.buffer, at, size).set(content);
    const result = use(at);
    this.#wasm.free(at);
    return result;
  }

  #word(at) {
    return new DataView(this.#wasm.memory.buffer).getUint32(at, true);
  }

  #bytes(at, size) {
    return new Uint8Array(this.#wasm.memory.buffer, at, size).slice();
  }

  #text(at) {
    const bytes = this.#bytes(at, 256); // a copy: a decoder of text takes no memory that is shared
    return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
  }

  #info(at) {
    const word = offset => this.#word(at + offset);
    const block = offset => word(offset) === 0 ? null : this.#bytes(word(offset), word(offset + 4));
    return {
      width: word(INFO.width),
      height: word(INFO.height),
      channels: word(INFO.channels),
      depth: word(INFO.depth),
      quality: word(INFO.quality) / 100,
      exact: word(INFO.exact) === 1,
      model: hexadecimal(this.#bytes(at + INFO.model, 4)),
      graphicBlocks: word(INFO.blocks),
      icc: block(INFO.icc),
      exif: block(INFO.exif),
      xmp: block(INFO.xmp),
    };
  }
}

function sharesMemory(module) {
  return WebAssembly.Module.imports(module).some(({kind}) => kind === 'memory');
}

function hexadecimal(bytes) {
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * The picture as pages show it: four samples of 8 bits for each pixel, straight alpha.
 * @returns {Uint8ClampedArray}
 */
export function rgba({width, height, channels, depth, samples}) {
  const out = new Uint8ClampedArray(4 * width * height), gray = channels < 3;
  const scaled = depth === 16 ? value => (value * 255 + 32767) / 65535 | 0 : value => value;
  for (let i = 0, from = 0; i < out.length; i += 4, from += channels) {
    out[i] = scaled(samples[from]);
    out[i + 1] = gray ? out[i] : scaled(samples[from + 1]);
    out[i + 2] = gray ? out[i] : scaled(samples[from + 2]);
    out[i + 3] = channels % 2 === 1 ? 255 : scaled(samples[from + channels - 1]);
  }
  return out;
}
