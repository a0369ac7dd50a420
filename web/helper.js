// A helper of a decoder on several threads: an instance of its module in its memory, which waits for work there and comes
// back when the decoder gives that memory up. A worker of pages or of Node runs it.
//
// In:  {module, memory, stack, variables}: where its stack begins, downwards, and where its thread's variables are
// Out: {}, once: it is loaded

import {givenUp, imports} from './dca.js';

function help({module, memory, stack, variables}) {
  const fail = () => { throw new Error('there is no more memory'); };
  let wasm;
  try {
    wasm = new WebAssembly.Instance(module, imports(fail, memory)).exports;
  } catch {
    return; // for want of memory: the others do the work
  }
  try {
    wasm.__stack_pointer.value = stack;
    wasm.__wasm_init_tls(variables);
    wasm.dca_help();
  } catch {
    wasm.dca_end(); // which the decoder says, as an error
  }
  givenUp(memory);
}

if (typeof WorkerGlobalScope === 'undefined') {
  const {parentPort} = await import(/* webpackIgnore: true */ 'node:worker_threads');
  parentPort.on('message', help);
  parentPort.postMessage({});
} else {
  self.onmessage = ({data}) => help(data);
  self.postMessage({});
}
