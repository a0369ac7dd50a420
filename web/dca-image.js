// <dca-image src="photo.dca" alt="..."></dca-image>: a .dca file where a page would have an <img>.
//
// Attributes: src; alt; loading="lazy" waits until it is near the screen; reduce="8" shows a preview with a pixel for so
// many by so many, 2, 4, 8 or 16. CSS sets its size as that of an image.
// Events: load, error (its detail is the DcaError). Children are shown until the picture is there, and if it fails.

import {decode, draw} from './client.js';

const STYLE = `
:host { display: inline-block; vertical-align: bottom; }
:host([hidden]) { display: none; }
canvas { display: none; width: 100%; height: 100%; object-fit: inherit; }
:host([complete]) canvas { display: block; }
:host([complete]) slot { display: none; }
`;

export class DcaImage extends HTMLElement {
  static observedAttributes = ['src', 'alt', 'loading', 'reduce'];
  #canvas = document.createElement('canvas');
  #stop = null;
  #seen = null;
  #wanted = null; // what is shown, or will be
  #begun = false; // to be loaded

  constructor() {
    super();
    const root = this.attachShadow({mode: 'open'}), style = document.createElement('style');
    style.textContent = STYLE;
    root.append(style, this.#canvas, document.createElement('slot'));
    this.#canvas.setAttribute('role', 'img');
  }

  /** Size of the picture as it is shown, in pixels; 0 before it is there. */
  get naturalWidth() { return this.complete ? this.#canvas.width : 0; }
  get naturalHeight() { return this.complete ? this.#canvas.height : 0; }
  get complete() { return this.hasAttribute('complete'); }
  get src() { return this.getAttribute('src'); }
  set src(value) { this.setAttribute('src', value); }
  get alt() { return this.getAttribute('alt') ?? ''; }
  set alt(value) { this.setAttribute('alt', value); }

  connectedCallback() { queueMicrotask(() => this.#start()); } // once, however many attributes there are

  disconnectedCallback() {
    queueMicrotask(() => { // it may only be moved
      if (!this.isConnected && !this.complete) this.#cancel();
    });
  }

  attributeChangedCallback(name, before, now) {
    if (name === 'alt') this.#canvas.setAttribute('aria-label', now ?? '');
    else if (before !== now) {
      queueMicrotask(() => this.#start());
    }
  }

  #cancel() {
    this.#stop?.abort();
    this.#seen?.disconnect();
    this.#wanted = null;
    this.#begun = false;
  }

  #start() {
    if (!this.isConnected) return;
    const wanted = `${this.getAttribute('reduce')} ${this.src}`, lazy = this.getAttribute('loading') === 'lazy';
    if (wanted === this.#wanted && (this.#begun || lazy)) return;
    this.#cancel();
    this.removeAttribute('complete');
    this.#wanted = wanted;
    if (!this.src) return;
    if (!lazy) return void this.#load();
    this.#seen = new IntersectionObserver(entries => {
      if (!entries.some(entry => entry.isIntersecting)) return;
      this.#seen.disconnect();
      this.#load();
    }, {rootMargin: '50%'});
    this.#seen.observe(this);
  }

  async #load() {
    const stop = this.#stop = new AbortController();
    this.#begun = true;
    try {
      const reduce = Number(this.getAttribute('reduce') ?? 1);
      const picture = await decode(new URL(this.src, document.baseURI), {signal: stop.signal, reduce});
      if (stop.signal.aborted) return; // another address came meanwhile
      draw(picture, this.#canvas);
      this.setAttribute('complete', '');
      this.dispatchEvent(new Event('load'));
    } catch (error) {
      if (stop.signal.aborted) return;
      this.#wanted = null; // what asks for it again may have it
      this.dispatchEvent(new CustomEvent('error', {detail: error}));
    }
  }
}

customElements.define('dca-image', DcaImage);
