/** Shares of the features over training, with the validation below; a click goes to a step. */
import {canvas, cut, h, line, PALETTE, valueAxis} from '../draw.js';
import {columnShares, short} from '../math.js';
import {View} from './common.js';
import {names} from './attribution.js';

const LEFT = 52, RIGHT = 118;
const VALIDATION = /^(val|valid|validation|dev|test|eval)\//;

export class SharesOverTraining extends View {
  constructor(app) {
    super(app, 'shares', 'Shares over training', 'Share of each feature in the attribution, with its 95 % CI, and a number of the validation below. Click to go to a step.');
    this.label = this.menu('which attribution', 'label');
    this.below = this.menu('number below', 'below');
  }

  draw() {
    const label = this.label(this.labels('attribution'));
    if (label === undefined) return null;
    const columns = this.columns(), scalars = new Set();
    for (const column of columns) for (const run of column.runs) for (const tag of Object.keys(this.store.runs.get(run).scalars)) if (VALIDATION.test(tag) || tag === 'train/loss') scalars.add(tag);
    const below = this.below([...scalars].sort((a, b) => Number(VALIDATION.test(b)) - Number(VALIDATION.test(a)) || a.localeCompare(b)));
    const width = this.width(columns.length, 640);
    const last = Math.max(1, ...columns.flatMap(column => this.stepsOf(column, 'attribution', label)));
    this.table = [['run', 'step', 'feature', 'share', 'low', 'high']];
    return columns.map(column => {
      const series = this.series(column, label);
      if (!series) return this.instead(column, null);
      if (!series.points.length) return this.instead(column, {why: 'it has no attribution'});
      for (const point of series.points) series.names.forEach((name, f) => this.table.push([column.name, point.step, name, point.shares[f], point.low?.[f], point.high?.[f]]));
      const parts = [this.chart(column, series, width, last)];
      if (below) parts.push(this.numberBelow(column, below, width, last));
      return h('figure', {}, this.caption(column, this.at(this.nearest(series.points.map(p => p.step)))), ...parts);
    });
  }

  /** Shares at every snapshot that is here, of the first run, or the mean over the runs of a side. */
  series(column, label) {
    const ofRuns = [];
    for (const run of column.runs) {
      const track = this.store.ofKind(run, 'attribution').find(a => a.label === label);
      if (!track) continue;
      const at = this.nearest(track.steps);
      if (!this.store.get(run, track.tag, at)) return null;
      this.store.get(run, track.tag, track.steps[0]);
      const cis = this.store.ofKind(run, 'shares').find(a => a.label === label);
      if (cis) this.store.get(run, cis.tag, at);
      const totals = this.store.ofKind(run, 'attribution features').find(a => a.label === label);
      if (totals) this.store.get(run, totals.tag, at);
      ofRuns.push({of: names(track), points: this.store.here(run, track.tag).map(array => this.point(run, array, cis, totals))});
    }
    if (!ofRuns.length) return {points: [], names: []};
    if (ofRuns.length === 1) return {points: ofRuns[0].points, names: ofRuns[0].of};
    return this.mean(ofRuns);
  }

  point(run, array, cis, totals) {
    const total = totals && this.store.here(run, totals.tag).find(a => a.step === array.step);
    const shares = total ? columnShares(total.values, 1, array.shape[1]) : columnShares(array.values, array.shape[0], array.shape[1]);
    const ci = cis && this.store.here(run, cis.tag).find(a => a.step === array.step);
    if (!ci) return {step: array.step, shares};
    const column = k => Array.from({length: ci.shape[0]}, (_, f) => ci.values[f * ci.shape[1] + k]);
    return {step: array.step, shares, low: column(1), high: column(2)};
  }

  /** The mean over runs with the range of the runs as its band, at steps that all have. */
  mean(ofRuns) {
    const of = ofRuns[0].of, others = ofRuns.map(({of: own, points}) => new Map(points.map(p => [p.step, of.map(name => p.shares[own.indexOf(name)])])));
    const points = [];
    for (const {step} of ofRuns[0].points) {
      const all = others.map(other => other.get(step)).filter(Boolean);
      if (all.length < others.length) continue;
      const per = f => all.map(shares => shares[f]);
      points.push({
        step, shares: of.map((_, f) => per(f).reduce((a, b) => a + b, 0) / all.length),
        low: of.map((_, f) => Math.min(...per(f))), high: of.map((_, f) => Math.max(...per(f))),
      });
    }
    return {points, names: of};
  }

  chart(column, {points, names: of}, width, last) {
    const height = 190, x = step => LEFT + (width - LEFT - RIGHT) * step / last;
    const final = points.at(-1).shares, order = of.map((_, f) => f).sort((a, b) => final[b] - final[a]);
    const shown = order.slice(0, PALETTE.length);
    const most = Math.min(1, 1.08 * Math.max(...points.flatMap(p => shown.map(f => p.high?.[f] ?? p.shares[f]))));
    const node = canvas(width, height, `${column.name}: shares of ${of.length} features over training`, g => {
      const y = valueAxis(g, {left: LEFT, top: 8, width: width - LEFT - RIGHT, height: height - 34, low: 0, high: most, grid: this.css('--grid'), dim: this.css('--dim'), digits: v => `${Math.round(100 * v)} %`});
      const xs = points.map(p => x(p.step)), taken = [];
      for (const f of shown) {
        const band = points.every(p => p.low) ? {low: points.map(p => y(p.low[f])), high: points.map(p => y(p.high[f]))} : {};
        const colour = PALETTE[f % PALETTE.length];
        line(g, xs, points.map(p => y(p.shares[f])), {...band, colour});
        // Names beside the ends of the lines, moved apart where they would meet.
        let place = y(final[f]);
        while (taken.some(other => Math.abs(other - place) < 13)) place += 2;
        taken.push(place);
        g.fillStyle = colour;
        g.textAlign = 'left';
        if (place < height - 20) g.fillText(cut(g, of[f], RIGHT - 12), x(points.at(-1).step) + 6, place);
      }
      this.axisOfSteps(g, x, last, height);
    });
    return this.clickable(node, x, last, points.map(p => p.step), width, step => {
      const point = points.find(p => p.step === step);
      return `step ${step.toLocaleString('en')}\n${shown.map(f => `${of[f]}: ${(100 * point.shares[f]).toFixed(1)} %${point.low ? ` [${(100 * point.low[f]).toFixed(1)}, ${(100 * point.high[f]).toFixed(1)}]` : ''}`).join('\n')}`;
    });
  }

  numberBelow(column, tag, width, last) {
    const height = 92, x = step => LEFT + (width - LEFT - RIGHT) * step / last;
    const curves = column.runs.map(run => this.store.runs.get(run).scalars[tag]).filter(Boolean);
    if (!curves.length) return this.sentence(`This run has no ${tag}.`);
    const values = curves.flatMap(c => c.values).filter(v => v != null);
    const node = canvas(width, height, `${column.name}: ${tag} over training`, g => {
      const y = valueAxis(g, {left: LEFT, top: 8, width: width - LEFT - RIGHT, height: height - 34, low: Math.min(...values), high: Math.max(...values), grid: this.css('--grid'), dim: this.css('--dim')});
      for (const curve of curves) line(g, curve.steps.map(x), curve.values.map(v => v == null ? NaN : y(v)), {colour: this.css('--fg'), width: 1.5, alpha: curves.length > 1 ? 0.6 : 1});
      g.fillStyle = this.css('--dim');
      g.textAlign = 'left';
      g.fillText(cut(g, tag, RIGHT - 12), width - RIGHT + 6, 16);
      this.axisOfSteps(g, x, last, height);
    });
    return this.clickable(node, x, last, [...new Set(curves.flatMap(c => c.steps))].sort((a, b) => a - b), width,
      step => curves.map((c, i) => `${column.runs[i]}, step ${step.toLocaleString('en')}: ${short(c.values[c.steps.indexOf(step)])}`).join('\n'));
  }

  axisOfSteps(g, x, last, height) {
    g.fillStyle = this.css('--dim');
    g.textAlign = 'center';
    for (const part of [0, 0.5, 1]) g.fillText(Math.round(last * part).toLocaleString('en'), x(last * part), height - 9);
    const mark = (step, dash) => {
      g.save();
      g.strokeStyle = this.css('--fg');
      g.setLineDash(dash);
      g.beginPath();
      g.moveTo(x(step), 2);
      g.lineTo(x(step), height - 24);
      g.stroke();
      g.restore();
    };
    if (this.choice.step != null) mark(Math.min(last, this.choice.step), []);
    if (this.choice.pinned != null) mark(this.choice.pinned, [3, 3]);
  }

  clickable(node, x, last, steps, width, text) {
    const nearest = place => steps.reduce((a, b) => Math.abs(x(b) - place) < Math.abs(x(a) - place) ? b : a, steps[0]);
    node.style.cursor = 'pointer';
    node.addEventListener('click', event => this.app.goTo(nearest(event.clientX - node.getBoundingClientRect().left)));
    return this.hover(node, place => steps.length ? text(nearest(place)) : '');
  }
}
