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

  connectedCallback() { this.#start(); }

  disconnectedCallback() {
    this.#stop?.abort();
    this.#seen?.disconnect();
  }

  attributeChangedCallback(name, before, now) {
    if (name === 'alt') this.#canvas.setAttribute('aria-label', now ?? '');
    else if (this.isConnected && before !== now) this.#start();
  }

  #start() {
    this.#stop?.abort();
    this.#seen?.disconnect();
    this.removeAttribute('complete');
    if (!this.src) return;
    if (this.getAttribute('loading') !== 'lazy') return void this.#load();
    this.#seen = new IntersectionObserver(entries => {
      if (!entries.some(entry => entry.isIntersecting)) return;
      this.#seen.disconnect();
      this.#load();
    }, {rootMargin: '50%'});
    this.#seen.observe(this);
  }

  async #load() {
    const stop = this.#stop = new AbortController();
    try {
      const reduce = Number(this.getAttribute('reduce') ?? 1);
      const picture = await decode(new URL(this.src, document.baseURI), {signal: stop.signal, reduce});
      if (stop.signal.aborted) return; // another address came meanwhile
      draw(picture, this.#canvas);
      this.setAttribute('complete', '');
      this.dispatchEvent(new Event('load'));
    } catch (error) {
      if (!stop.signal.aborted) this.dispatchEvent(new CustomEvent('error', {detail: error}));
    }
  }
}

customElements.define('dca-image', DcaImage);
