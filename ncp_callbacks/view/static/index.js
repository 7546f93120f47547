/**
 * The interactive page. `render({root, source, dark})` draws it into any element, from any source.
 * TensorBoard calls render() without arguments, and so does the page of `ncp-callbacks view`.
 */
import {h} from './draw.js';
import {stepAt} from './math.js';
import {HttpSource} from './source.js';
import {Choice, MAX_SIDE_BY_SIDE, Store} from './state.js';
import {CSS} from './style.js';
import {Findings} from './views/findings.js';
import {AttributionMaps} from './views/attribution.js';
import {SharesOverTraining} from './views/shares.js';
import {ElapsedTime} from './views/time.js';
import {HiddenStates} from './views/states.js';
import {Units, WiredGraph} from './views/units.js';
import {RunsTable} from './views/table.js';

const POLL_MS = 5000;

export async function render(options = {}) {
  const app = new App(options.root ?? document.body, options.source ?? new HttpSource(), options);
  await app.start();
  return app;
}

class App {
  constructor(root, source, options) {
    this.options = options;
    this.listeners = [];
    this.choice = new Choice();
    this.store = new Store(source, () => this.soon());
    if (root === document.body) root.style.margin = '0';
    this.el = h('div', {className: 'ncp'});
    root.replaceChildren(h('style', {textContent: CSS}), this.el);
    this.tip = h('div', {className: 'tip', hidden: true});
    this.body = h('main');
    this.views = [];
    this.build();
    this.followTheme();
  }

  // ---- the frame

  build() {
    this.slider = h('input', {type: 'range', min: '0', max: '0', step: '1', 'aria-label': 'training step', oninput: () => {
      const steps = this.steps();
      this.choice.follow = Number(this.slider.value) === steps.length - 1;
      this.choice.step = steps[Number(this.slider.value)];
      this.soon();
    }});
    this.output = h('output');
    this.play = h('button', {title: 'go through the snapshots (key p)', onclick: () => this.playing ? this.stop() : this.run()});
    this.follow = h('button', {textContent: 'follow', title: 'stay at the newest snapshot (key f)', onclick: () => { this.choice.follow = !this.choice.follow; if (this.choice.follow) this.choice.step = this.steps().at(-1); this.soon(); }});
    this.pin = h('button', {title: 'compare every run with itself at this step (key s)', onclick: () => { this.choice.pinned = this.choice.pinned == null ? this.choice.step : null; this.soon(); }});
    this.filter = h('input', {type: 'search', placeholder: 'filter runs', 'aria-label': 'filter runs', oninput: () => this.listRuns()});
    this.list = h('ul');
    this.note = h('p');
    const aside = h('aside', {}, h('h2', {textContent: 'Runs'}),
      h('p', {textContent: `Up to ${MAX_SIDE_BY_SIDE} side by side; the others are compared with the first. Put runs on side B to compare means of A and B.`}), this.filter, this.list, this.note);
    this.el.append(h('header', {}, this.play, this.slider, this.output, this.follow, this.pin), aside, this.body, this.tip);
    this.views = [Findings, AttributionMaps, SharesOverTraining, ElapsedTime, HiddenStates, Units, WiredGraph, RunsTable].map(Kind => new Kind(this));
    this.said = h('p', {className: 'note', role: 'status'});
    document.addEventListener('keydown', event => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input:not([type=checkbox]), select, textarea')) return;
    const act = {p: () => this.play.click(), f: () => this.follow.click(), s: () => this.pin.click(), ArrowLeft: () => this.move(-1), ArrowRight: () => this.move(1)}[event.key];
    if (act) { act(); event.preventDefault(); }
  }

  move(by) {
    const steps = this.steps(), at = steps.indexOf(stepAt(steps, this.choice.step));
    this.goTo(steps[Math.max(0, Math.min(steps.length - 1, at + by))]);
  }

  goTo(step) {
    if (step == null) return;
    const steps = this.steps();
    this.choice.step = step;
    this.choice.follow = step >= steps.at(-1);
    this.soon();
  }

  run() {
    const steps = this.steps();
    let at = this.choice.step >= steps.at(-1) ? -1 : steps.indexOf(stepAt(steps, this.choice.step));
    this.choice.follow = false;
    this.playing = setInterval(() => {
      const now = this.steps();
      if (at >= now.length - 1) { this.stop(); return; }
      this.choice.step = now[++at];
      this.soon();
    }, 150);
    this.soon();
  }

  stop() { clearInterval(this.playing); this.playing = null; this.soon(); }

  // ---- data

  async start() {
    this.choice.fromHash(location.hash.slice(1) || this.kept());
    await this.reload();
    this.listenToHost();
    if (this.store.source.live) setInterval(() => { if (this.visible()) this.reload(); }, this.options.poll ?? POLL_MS);
    let wide = this.body.clientWidth;
    // Its height changes with what is drawn.
    new ResizeObserver(() => { if (this.body.clientWidth !== wide) { wide = this.body.clientWidth; this.soon(); } }).observe(this.body);
  }

  /** Whether somebody can see the page: TensorBoard hides the frames of other tabs. */
  visible() {
    let frame = null;
    try { frame = window.frameElement; } catch { /* Another origin. */ }
    return !document.hidden && !(frame && (frame.style.visibility === 'hidden' || frame.offsetParent === null));
  }

  async reload() {
    if (this.reloading) return;
    this.reloading = true;
    let changed = false;
    const before = this.sentence;
    try {
      changed = await this.store.readNames();
      if (!this.store.names.length) throw new Error('There is no run here yet.');
      this.choice.runs = this.choice.runs.filter(name => this.store.names.includes(name));
      if (!this.choice.runs.length) this.choice.runs = this.store.names.slice(0, 2);
      const read = await Promise.all(this.choice.runs.map(name => this.store.readRun(name)));
      changed ||= read.some(Boolean);
      this.tellSentence(this.emptyReason());
      if (this.choice.follow || this.choice.step == null) this.choice.step = this.steps().at(-1) ?? null;
    } catch (error) {
      this.tellSentence(`The runs can't be read: ${error.message}`);
    } finally {
      this.reloading = false;
      this.loaded = true;
    }
    // Without anything new all stays as it is: the focus, and what is told of the place below the pointer.
    if (!changed && this.sentence === before) { this.tellBusy(); return; }
    this.listRuns();
    this.soon();
  }

  emptyReason() {
    const runs = this.choice.runs;
    if (runs.some(run => this.store.hasArrays(run))) return '';
    if (runs.some(run => this.store.hasNewer(run))) return 'These runs were written by a newer version: update ncp_callbacks.';
    return 'The chosen runs have no arrays that this page shows. A monitor writes them at its first snapshot.';
  }

  tellSentence(text) { this.sentence = text; }

  steps() {
    const of = this.choice.runs.map(run => `${run} ${this.store.runs.get(run)?.version}`).join('\n');
    if (this.known?.of !== of) this.known = {of, steps: this.store.stepsOf(this.choice.runs)};
    return this.known.steps;
  }

  async toggleRun(name) {
    const {runs, sides} = this.choice;
    if (runs.includes(name)) {
      if (runs.length > 1) { this.choice.runs = runs.filter(run => run !== name); sides.delete(name); }
    } else {
      this.choice.runs = [...runs, name];
      const sided = [...sides.values()].includes('B');
      if (!sided) this.choice.runs = this.choice.runs.slice(-MAX_SIDE_BY_SIDE);
      const read = this.store.readRun(name).catch(() => {});
      this.tellBusy();
      await read;
    }
    this.tellSentence(this.emptyReason());
    if (this.choice.follow) this.choice.step = this.steps().at(-1) ?? null;
    this.listRuns();
    this.soon();
  }

  listRuns() {
    const wanted = this.filter.value.toLowerCase();
    const names = this.store.names.filter(name => name.toLowerCase().includes(wanted) || this.choice.runs.includes(name));
    this.list.replaceChildren(...names.map(name => {
      const shown = this.choice.runs.includes(name), side = this.choice.sides.get(name) ?? 'A';
      const box = h('input', {type: 'checkbox', checked: shown, onchange: () => this.toggleRun(name)});
      const item = h('li', {}, h('label', {title: name}, box, h('i', {className: 'dot', style: {background: this.store.colour(name)}}), h('span', {textContent: name})));
      if (shown && this.choice.runs.length > 1) item.append(h('button', {textContent: side, title: 'side A or B', 'aria-label': `${name} is on side ${side}`, onclick: () => {
        if (side === 'A') this.choice.sides.set(name, 'B'); else this.choice.sides.delete(name);
        this.listRuns();
        this.soon();
      }}));
      return item;
    }));
    const unknown = this.store.unknownKinds(this.choice.runs).map(kind => `“${kind}”`).join(', ');
    const lost = this.choice.runs.filter(name => this.store.unreadable.has(name));
    this.note.textContent = [lost.length && `${lost.join(', ')} can’t be read.`, this.store.note, unknown && `Arrays of kind ${unknown} are not shown here: update ncp_callbacks if they are its own.`].filter(Boolean).join(' ');
  }

  // ---- drawing

  get dark() { return this.el.classList.contains('dark'); }
  css(name) { return this.colours[name] ??= getComputedStyle(this.el).getPropertyValue(name).trim(); }
  width() { return this.wide ??= Math.max(300, this.body.clientWidth - 34); }
  onDraw(listener) { this.listeners.push(listener); }

  soon() {
    if (this.due) return;
    this.due = true;
    this.tellBusy();
    requestAnimationFrame(() => { this.due = false; this.draw(); });
  }

  /** Draws what can be seen at once, and the rest when there is time. */
  draw() {
    this.colours = {};
    this.wide = null;
    // Some of the runs may be here while others are still read.
    this.choice.step ??= this.steps().at(-1) ?? null;
    const steps = this.steps(), at = steps.indexOf(stepAt(steps, this.choice.step));
    this.slider.max = String(Math.max(0, steps.length - 1));
    this.slider.value = String(Math.max(0, at));
    this.output.textContent = steps.length ? `step ${this.choice.step.toLocaleString('en')} · snapshot ${at + 1} of ${steps.length}` : 'no snapshot yet';
    this.play.textContent = this.playing ? '❚❚ stop' : '▶ play';
    this.follow.setAttribute('aria-pressed', String(this.choice.follow));
    this.pin.setAttribute('aria-pressed', String(this.choice.pinned != null));
    this.pin.textContent = this.choice.pinned == null ? 'pin step' : `pinned ${this.choice.pinned.toLocaleString('en')}`;
    for (const listener of this.listeners) listener();
    this.said.textContent = this.sentence;
    this.said.hidden = !this.sentence;
    if (!this.said.parentNode) this.body.replaceChildren(this.said, ...this.views.map(view => view.el));
    this.width();
    const seen = this.views.filter(view => view.inSight());
    for (const view of this.views) view.stale = true;
    for (const view of seen) view.update();
    this.drawRest();
    this.keepAddress();
  }

  /** Tells assistive technology, and tests, that not everything is drawn yet. */
  tellBusy() { this.body.setAttribute('aria-busy', String(Boolean(!this.loaded || this.due || this.store.waits() || this.views.some(view => view.stale)))); }

  /** Draws one view after the other, between which the reader can go on. */
  drawRest() {
    const rest = this.views.find(view => view.stale);
    this.tellBusy();
    if (!rest || this.drawing) return;
    this.drawing = true;
    const next = () => {
      this.drawing = false;
      this.views.find(view => view.stale)?.update();
      this.drawRest();
    };
    if (window.requestIdleCallback) requestIdleCallback(next, {timeout: 300}); else setTimeout(next, 30);
  }

  /** Writes the choice into the address once the slider rests: browsers refuse too many changes. */
  keepAddress() {
    if (!this.store.source.live) return;
    clearTimeout(this.address);
    this.address = setTimeout(() => {
      if (window.parent === window) { history.replaceState(null, '', `#${this.choice.toHash()}`); return; }
      // In a frame of TensorBoard, the address is not its own.
      try { sessionStorage.setItem('ncp_callbacks', this.choice.toHash()); } catch { /* It may keep nothing. */ }
    }, 150);
  }

  /** What was chosen in a frame before it was loaded again. */
  kept() {
    try { return (window.parent !== window && this.store.source.live && sessionStorage.getItem('ncp_callbacks')) || ''; } catch { return ''; }
  }

  tell(text, event) {
    this.tip.hidden = !text;
    if (!text) return;
    this.tip.textContent = text;
    this.tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - this.tip.offsetWidth - 8))}px`;
    this.tip.style.top = `${Math.min(event.clientY + 14, innerHeight - this.tip.offsetHeight - 8)}px`;
  }

  // ---- the host

  followTheme() {
    if (this.options.dark != null) { this.el.classList.toggle('dark', this.options.dark); return; }
    let host = null;
    try { if (window.parent !== window) host = window.parent.document.body; } catch { /* Another origin. */ }
    const media = matchMedia('(prefers-color-scheme: dark)');
    const apply = () => { this.el.classList.toggle('dark', host ? host.classList.contains('dark-mode') : media.matches); this.soon(); };
    if (host) new MutationObserver(apply).observe(host, {attributes: true, attributeFilter: ['class']});
    media.addEventListener('change', apply);
    apply();
  }

  /** TensorBoard's reload button: an experimental protocol; without it the timer does. */
  listenToHost() {
    if (window.parent === window) return;
    try {
      const channel = new MessageChannel();
      channel.port1.onmessage = event => {
        const message = JSON.parse(event.data);
        if (message.isReply) return;
        channel.port1.postMessage(JSON.stringify({type: message.type, id: message.id, payload: null, error: null, isReply: true}));
        if (message.type === 'experimental.DataReloaded') this.reload();
      };
      window.parent.postMessage('experimental.bootstrap', location.origin, [channel.port2]);
    } catch { /* No host, or one of another kind. */ }
  }
}
