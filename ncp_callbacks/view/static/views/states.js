/** Where the hidden state goes: trajectories in axes that the runs have in common. */
import {canvas, h, PALETTE, rgb, viridis} from '../draw.js';
import {debiasedCka, moved, procrustes, short, stepAt} from '../math.js';
import {View} from './common.js';

export class HiddenStates extends View {
  constructor(app) {
    super(app, 'states', 'Where the hidden state goes', 'The same held-out sequences in every run, along the first two of three kept axes; dots are their ends. Drag to move, or in 3D to turn; zoom with the wheel and Ctrl; all pictures go together. With common axes, each picture is turned onto the first run at its last snapshot.');
    this.label = this.menu('which cell', 'label');
    this.toggle('colour by class', 'class', true);
    this.toggle('common axes', 'common', true);
    this.toggle('3D', 'space', false);
    this.bar.append(h('button', {textContent: 'reset', onclick: () => { this.place = start(); app.soon(); }}));
    this.place = start();
    this.near = null;
    this.similar = new WeakMap();
  }

  draw() {
    const label = this.label(this.labels('trajectory'));
    if (label === undefined) return null;
    // Two sides can't be averaged here: a mean of trajectories is no trajectory.
    const runs = this.columns().flatMap(column => column.runs).slice(0, 4).map(run => ({name: run, colour: this.store.colour(run), runs: [run]}));
    const sets = runs.map(column => ({column, array: this.array(column, 'trajectory', label)}));
    const reference = this.reference(runs[0], label);
    this.table = [['run', 'step', 'sequence', 'time step', 'x', 'y', 'z']];
    for (const set of sets) if (set.array && !set.array.why) this.align(set, reference, label);
    let size = 0;
    for (const set of sets) for (const value of set.points ?? []) if (Number.isFinite(value)) size = Math.max(size, Math.abs(value));
    const width = this.width(sets.length, 430), height = Math.min(width, 340);
    return sets.map(({column, array, points, text}) => {
      if (!array || array.why) return this.instead(column, array);
      return this.figure(column, `${this.which(array, label)}${text}`, this.picture(column, array, points, size || 1, width, height));
    });
  }

  reference(column, label) {
    const steps = this.stepsOf(column, 'trajectory', label);
    return this.array(column, 'trajectory', label, steps.at(-1));
  }

  align(set, reference, label) {
    const {array} = set;
    set.points = array.values;
    set.text = '';
    if (!this.option('common', true) || !reference || reference.why || (reference.run === array.run && reference.step === array.step)) return;
    if (reference.about.held_out !== array.about.held_out || String(reference.shape) !== String(array.shape)) {
      set.text = ' · its own axes: other held-out sequences';
      return;
    }
    const found = procrustes(array.values, reference.values);
    set.points = moved(array.values, found);
    set.text = ` · R² ${short(found.r2)} with the first run${this.similarity(array, reference, label)}`;
  }

  /** The debiased CKA of the sampled states of two snapshots, in words. */
  similarity(array, reference, label) {
    const sample = ({run, step}) => {
      const track = this.store.ofKind(run, 'state sample').find(a => a.label === label || a.about.cell === array.about.cell);
      return track && this.store.get(run, track.tag, stepAt(track.steps, step));
    };
    const a = sample(array), b = sample(reference);
    if (!a || !b || a.missing || b.missing || a.shape[0] !== b.shape[0]) return '';
    if (!this.similar.has(a)) this.similar.set(a, new Map([[b, debiasedCka(a.values, b.values, a.shape[0])]]));
    const of = this.similar.get(a);
    if (!of.has(b)) of.set(b, debiasedCka(a.values, b.values, a.shape[0]));
    return `, CKA ${short(of.get(b))}`;
  }

  picture(column, array, points, size, width, height) {
    const [sequences, steps] = array.shape, {about} = array, classes = this.option('class', true) ? about.sequence_class : null;
    const {turn, zoom} = this.place, dots = [];
    this.table.push(() => Array.from({length: sequences * steps}, (_, i) => [i, Math.floor(i / steps), i % steps]).filter(([i]) => Number.isFinite(points[3 * i]))
      .map(([i, q, t]) => [column.name, array.step, about.sequences?.[q] ?? q, about.time_steps?.[t] ?? t, points[3 * i], points[3 * i + 1], points[3 * i + 2]]));
    const project = i => {
      let [x, y, z] = [points[3 * i], points[3 * i + 1], points[3 * i + 2]];
      if (this.option('space', false)) {
        const x1 = x * Math.cos(turn[0]) + z * Math.sin(turn[0]), z1 = z * Math.cos(turn[0]) - x * Math.sin(turn[0]);
        y = y * Math.cos(turn[1]) - z1 * Math.sin(turn[1]);
        x = x1;
      }
      const scale = zoom.scale * 0.46 * Math.min(width, height) / size;
      return [width / 2 + zoom.x + scale * x, height / 2 + zoom.y - scale * y];
    };
    const colour = (q, t) => classes ? PALETTE[classes[q] % PALETTE.length] : rgb(viridis(steps > 1 ? t / (steps - 1) : 0));
    const node = canvas(width, height, `${column.name}: trajectories of ${sequences} sequences`, g => {
      g.strokeStyle = this.css('--line');
      g.strokeRect(0.5, 0.5, width - 1, height - 1);
      for (let q = 0; q < sequences; q++) {
        g.globalAlpha = this.near == null || this.near === q ? 0.95 : 0.15;
        g.lineWidth = this.near === q ? 2.6 : 1.3;
        let end = null;
        for (let t = 0; t < steps; t++) {
          const i = q * steps + t;
          if (!Number.isFinite(points[3 * i])) continue;
          const [x, y] = project(i);
          if (end) { g.strokeStyle = colour(q, t); g.beginPath(); g.moveTo(...end); g.lineTo(x, y); g.stroke(); }
          end = [x, y];
          dots.push([x, y, q, t]);
        }
        if (end) { g.fillStyle = colour(q, steps - 1); g.beginPath(); g.arc(...end, 4, 0, 7); g.fill(); }
      }
      g.globalAlpha = 1;
      this.legendOf(g, classes, about, width, height);
    });
    this.movable(node);
    return this.hover(node, (x, y) => {
      let best = null, near = 14;
      for (const dot of dots) { const distance = Math.hypot(dot[0] - x, dot[1] - y); if (distance < near) { near = distance; best = dot; } }
      const sequence = best ? best[2] : null;
      if (sequence !== this.near) { this.near = sequence; this.app.soon(); }
      if (!best) return '';
      const kind = about.sequence_class ? `, ${about.class_names?.[about.sequence_class[best[2]]] ?? `class ${about.sequence_class[best[2]]}`}` : '';
      const elapsed = this.elapsed(array, best[2] * steps + best[3]);
      return `sequence ${about.sequences?.[best[2]] ?? best[2]}${kind}\ntime step ${about.time_steps?.[best[3]] ?? best[3]}${elapsed}`;
    });
  }

  /** The time since the start of the sequence, in words; '' if it is not logged or not here yet. */
  elapsed({run, about}, place) {
    const track = this.store.ofKind(run, 'elapsed').find(a => a.about.cell === about.cell);
    const found = track && this.store.get(run, track.tag, track.steps.at(-1));
    return found && !found.missing ? `, after ${short(found.values[place])} of elapsed time` : '';
  }

  legendOf(g, classes, about, width, height) {
    g.textAlign = 'left';
    const dot = (x, y, colour, text) => { g.fillStyle = colour; g.beginPath(); g.arc(x, y, 4, 0, 7); g.fill(); g.fillStyle = this.css('--fg'); g.fillText(text, x + 8, y); };
    if (classes) [...new Set(classes)].sort((a, b) => a - b).slice(0, 8).forEach((k, i) => dot(14, 14 + 16 * i, PALETTE[k % PALETTE.length], about.class_names?.[k] ?? `class ${k}`));
    else { dot(14, height - 14, rgb(viridis(0)), 'start'); dot(74, height - 14, rgb(viridis(1)), 'end'); }
  }

  movable(node) {
    node.addEventListener('pointerdown', event => {
      let [x, y] = [event.clientX, event.clientY];
      const move = now => {
        const [dx, dy] = [now.clientX - x, now.clientY - y];
        if (this.option('space', false)) this.place.turn = [this.place.turn[0] + dx / 120, this.place.turn[1] + dy / 120];
        else { this.place.zoom.x += dx; this.place.zoom.y += dy; }
        [x, y] = [now.clientX, now.clientY];
        this.app.soon();
      };
      const up = () => { removeEventListener('pointermove', move); removeEventListener('pointerup', up); };
      addEventListener('pointermove', move);
      addEventListener('pointerup', up);
    });
    node.addEventListener('wheel', event => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      const factor = Math.exp(-event.deltaY / 400), {zoom} = this.place;
      zoom.scale *= factor;
      zoom.x *= factor;
      zoom.y *= factor;
      this.app.soon();
    }, {passive: false});
  }
}

const start = () => ({turn: [0.5, -0.35], zoom: {scale: 1, x: 0, y: 0}});
