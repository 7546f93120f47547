/** How the target reacts to elapsed time, now and at earlier snapshots. */
import {canvas, h, line, stepTicks, valueAxis} from '../draw.js';
import {logged, nice, short} from '../math.js';
import {HEIGHT, View} from './common.js';

const LEFT = 56, BOTTOM = 28;
const EARLIER = 60;  // Faint lines, at most.

export class ElapsedTime extends View {
  constructor(app) {
    super(app, 'time', 'When time runs faster or slower', 'RMS change of the target when all elapsed times are scaled. Faint lines are earlier snapshots; the dashed line is the pinned one.');
    this.label = this.menu('which cell or target', 'label');
  }

  draw() {
    const label = this.label(this.labels('time curve'));
    const byStep = this.labels('time by step');
    if (label === undefined && !byStep.length) return null;
    const columns = this.columns();
    this.table = [['run', 'step', 'scale', 'RMS change', 'low', 'high']];
    const wanted = [['time curve', label], ['time by step', byStep[0]]].filter(([, of]) => of !== undefined);
    const reasons = columns.map(column => [column, wanted.map(([kind, of]) => this.array(column, kind, of)?.why).filter(Boolean)]);
    const missing = reasons.filter(([, of]) => of.length).map(([column, of]) => [column, {why: of.join('; ')}]);
    return [label === undefined ? null : this.curves(columns, label), byStep.length ? this.gaps(columns, byStep[0]) : null, ...missing.map(of => this.instead(...of))].filter(Boolean);
  }

  curves(columns, label) {
    const sets = columns.map(column => ({column, now: this.array(column, 'time curve', label), pinned: this.choice.pinned == null ? null : this.array(column, 'time curve', label, this.choice.pinned)}))
      .filter(({now}) => now && !now.why);
    if (!sets.length) return columns.some(column => this.array(column, 'time curve', label) === null) ? this.sentence('loading …') : null;
    for (const set of sets) set.all = set.column.runs.length === 1 ? this.store.spread(set.column.runs[0], set.now.tag, EARLIER) : [];
    const rows = array => { const n = array.shape[1], row = k => Array.from(array.values.slice(k * n, (k + 1) * n)); return array.shape[0] >= 5 ? {scale: row(0), rms: row(1), low: row(3), high: row(4)} : {scale: row(0), rms: row(1)}; };
    const scales = rows(sets[0].now).scale, most = nice(Math.max(...sets.flatMap(s => [s.now, ...s.all].flatMap(a => { const r = rows(a); return r.high ?? r.rms; })).filter(Number.isFinite)));
    const width = this.half(), low = Math.log(Math.min(...scales)), high = Math.log(Math.max(...scales));
    const x = scale => LEFT + 10 + (width - LEFT - 30) * (Math.log(scale) - low) / ((high - low) || 1);
    const node = canvas(width, HEIGHT, 'RMS change of the target by the scale of elapsed times', g => {
      const y = valueAxis(g, {left: LEFT, top: 8, width: width - LEFT - 8, height: HEIGHT - BOTTOM - 12, low: 0, high: most, grid: this.css('--grid'), dim: this.css('--dim')});
      g.textAlign = 'center';
      for (const scale of scales) g.fillText(`× ${short(scale)}`, x(scale), HEIGHT - 10);
      for (const {column, now, pinned, all} of sets) {
        const of = (array, style) => { const r = rows(array), order = r.scale.map((_, i) => i).sort((a, b) => r.scale[a] - r.scale[b]); line(g, order.map(i => x(r.scale[i])), order.map(i => y(r.rms[i])), {colour: column.colour, ...style, ...(style.band && r.low ? {low: order.map(i => y(r.low[i])), high: order.map(i => y(r.high[i]))} : {})}); };
        for (const array of all) if (array.step < now.step) of(array, {width: 1, alpha: 0.14});
        if (pinned && !pinned.why) of(pinned, {width: 1.5, dash: [5, 4], alpha: 0.9});
        of(now, {width: 2.5, band: true});
        const r = rows(now);
        g.fillStyle = column.colour;
        r.scale.forEach((scale, i) => { g.beginPath(); g.arc(x(scale), y(r.rms[i]), 3.5, 0, 7); g.fill(); this.table.push([column.name, now.step, scale, r.rms[i], r.low?.[i], r.high?.[i]]); });
      }
    });
    this.hover(node, place => {
      const scale = scales.reduce((a, b) => Math.abs(x(b) - place) < Math.abs(x(a) - place) ? b : a);
      return `all elapsed times × ${short(scale)}\n${sets.map(({column, now}) => { const r = rows(now), i = r.scale.indexOf(scale); return `${column.name}: ${logged(r.rms[i])}${r.low ? ` [${short(r.low[i])}, ${short(r.high[i])}]` : ''}`; }).join('\n')}`;
    });
    return h('figure', {}, h('figcaption', {}, h('b', {textContent: 'RMS change of the target'}), h('span', {textContent: 'by the factor of all elapsed times'}), ...this.legend(sets.map(({column, now}) => [column, now]), label)), node);
  }

  gaps(columns, label) {
    const sets = columns.map(column => ({column, array: this.array(column, 'time by step', label)})).filter(({array}) => array && !array.why);
    if (!sets.length) return null;
    const steps = Math.max(...sets.map(s => s.array.values.length)), most = nice(Math.max(...sets.flatMap(s => Array.from(s.array.values, Math.abs)).filter(Number.isFinite)));
    const width = this.half(), x = t => LEFT + 10 + (width - LEFT - 30) * t / Math.max(1, steps - 1);
    const node = canvas(width, HEIGHT, 'effect of each elapsed time on the target', g => {
      const y = valueAxis(g, {left: LEFT, top: 8, width: width - LEFT - 8, height: HEIGHT - BOTTOM - 12, low: -most, high: most, grid: this.css('--grid'), dim: this.css('--dim')});
      stepTicks(g, steps, x, HEIGHT - 10);
      for (const {column, array} of sets) line(g, Array.from(array.values, (_, t) => x(t)), Array.from(array.values, y), {colour: column.colour, width: 2.5});
    });
    this.hover(node, place => {
      const t = Math.max(0, Math.min(steps - 1, Math.round((place - LEFT - 10) / ((width - LEFT - 30) / Math.max(1, steps - 1)))));
      return `elapsed time before time step ${t}\n${sets.map(({column, array}) => `${column.name}: ${logged(array.values[t])}`).join('\n')}`;
    });
    return h('figure', {}, h('figcaption', {}, h('b', {textContent: 'which elapsed times matter'}), h('span', {textContent: 'Δt · ∂target/∂Δt by time step, mean over sequences'}), ...this.legend(sets.map(({column, array}) => [column, array]), label)), node);
  }

  half() { const all = this.app.width(); return all > 720 ? Math.min(560, all / 2 - 12) : all; }

  legend(sets, label) {
    return sets.map(([column, array]) => h('span', {}, h('i', {className: 'dot', style: {background: column.colour}}), ' ', h('b', {textContent: column.name}), ` ${this.which(array, label)}`));
  }
}
