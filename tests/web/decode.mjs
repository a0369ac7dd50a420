// Decodes files with the module that was built, in Node:
//   node decode.mjs FOLDER WEIGHTS|- FILE...
// with vectors, or without where DCA_ISA is scalar; on DCA_THREADS threads, those of dca-threads.wasm where it is set;
// writes a line of JSON for each: what it says and the SHA-256 of its samples, or the kind of its error.
import {createHash} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {pathToFileURL} from 'node:url';

const [folder, weights, ...files] = process.argv.slice(2);
const {compile, Decoder, DcaError, rgba} = await import(pathToFileURL(`${folder}/dca.js`));
const threads = process.env.DCA_THREADS && Number(process.env.DCA_THREADS);
const module = await compile(await readFile(`${folder}/${threads ? 'dca-threads' : 'dca'}.wasm`));
const hash = array => createHash('sha256').update(new Uint8Array(array.buffer, array.byteOffset, array.byteLength)).digest('hex');
const options = {maxPixels: 2 ** 24, isa: process.env.DCA_ISA || 'wasm'};
const content = weights === '-' ? null : new Uint8Array(await readFile(weights));
const alone = () => new Decoder(module, content, options);
const decoder = threads ? await Decoder.create(module, content, {threads, ...options}) : alone();
for (const file of files) {
  let line;
  try {
    const bytes = new Uint8Array(await readFile(file)), picture = decoder.decode(bytes);
    const preview = hash(rgba(decoder.decode(bytes, {reduce: 8})));
    const {samples, icc, exif, xmp, ...facts} = picture;
    const text = block => block && Buffer.from(block).toString('latin1');
    line = {...facts, preview, samples: hash(samples), rgba: hash(rgba(picture)), icc: text(icc), exif: text(exif), xmp: text(xmp)};
  } catch (error) {
    if (!(error instanceof DcaError)) throw error;
    line = {kind: error.kind, message: error.message};
  }
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
process.stdout.write(`${JSON.stringify({model: decoder.model})}\n`);
