/** What is shown, and the data that is here: no drawing. */
import {meanAndSd, stepAt} from './math.js';
import {PALETTE} from './draw.js';

export const FORMAT = 1;
export const MAX_SIDE_BY_SIDE = 4;
/** Tags of validation, as the package knows them. */
export const VALIDATION = /^(val|valid|validation|dev|test|eval)(?=[/_]|$)/;
/** Tag of the documents that hold what the rules found. */
export const FINDINGS = '_ncp/findings';
const KINDS = ['attribution', 'shares', 'trajectory', 'time curve', 'units'];
/** What the package logs: those that are drawn, and those that stand for themselves. */
const KNOWN = [...KINDS, 'attribution signed', 'time by step', 'state sample', 'elapsed', 'unit values', 'unit words', 'wiring share', 'wiring current', 'wiring attribution', 'spectrum', 'held out batch', 'interactions', 'interactions signed'];
const MAX_BYTES_AT_ONCE = 1.5e6;
const MAX_SPREAD = 250;
const byName = (a, b) => a.localeCompare(b, 'en', {numeric: true});

/** The runs of a source as far as they have been asked for. */
export class Store {
  constructor(source, changed) {
    this.source = source;
    this.changed = changed;
    this.names = [];
    this.note = '';
    this.runs = new Map();
    this.summaries = new Map();
    this.arrays = new Map();
    this.documents = new Map();
    this.asked = new Set();
    this.reading = 0;
    this.colours = new Map();
    this.unreadable = new Set();
  }

  /** Read the names of the runs; true if there are others than before. Throws what is to be told to the reader. */
  async readNames() {
    const found = await this.source.runs();
    if (found.format > FORMAT) throw new Error('These runs were written by a newer version: update ncp_callbacks.');
    const names = [...found.runs].sort(byName), note = found.note || '';
    const changed = String(names) !== String(this.names) || note !== this.note;
    Object.assign(this, {names, note});
    // A run keeps its colour when others appear.
    for (const name of names) if (!this.colours.has(name)) this.colours.set(name, PALETTE[this.colours.size % PALETTE.length]);
    for (const name of this.runs.keys()) if (!this.names.includes(name)) this.forget(name);
    return changed;
  }

  /** Remove what is known of a run; true if anything was. */
  forget(name) {
    const known = this.runs.delete(name);
    for (const held of [this.arrays, this.documents]) for (const key of [...held.keys()]) if (key.startsWith(`${name}\n`)) held.delete(key);
    return known;
  }

  /** Read what a run has got since; true if there was something new. A run that can't be read is noted, and forgotten. */
  async readRun(name) {
    try {
      const changed = await this.readMore(name);
      return this.unreadable.delete(name) || changed;
    } catch (error) {
      if (!error.refused) throw error;
      const noted = this.unreadable.has(name);
      this.unreadable.add(name);
      return this.forget(name) || !noted;
    }
  }

  async readMore(name) {
    const had = this.runs.get(name);
    this.reading++;
    const found = await this.source.run(name, had?.version ?? '').finally(() => this.reading--);
    if (had && found.version === had.version) return false;
    // The first part of a version counts how often the run began anew.
    if (had && had.version.split('.')[0] !== found.version.split('.')[0]) this.forget(name);
    found.scalars = decoded(found.scalars);
    this.runs.set(name, found.since && had ? grown(had, found) : found);
    return true;
  }

  /** Read the last numbers of a run that isn't shown, for the table. */
  async readSummary(name) {
    if (!this.summaries.has(name)) this.summaries.set(name, decoded((await this.source.summary(name)).scalars));
  }

  colour(name) { return this.colours.get(name) ?? PALETTE[0]; }

  /** The arrays of a kind in a run: [{tag, steps, shape, about, label}]. */
  ofKind(run, kind) {
    const arrays = this.runs.get(run)?.arrays ?? {};
    return Object.entries(arrays).filter(([, array]) => array.about.kind === kind && array.about.v <= FORMAT)
      .map(([tag, array]) => ({tag, ...array, label: labelOf(array.about)}));
  }

  /** The array of a kind in a run that has a label; without one, the nearest to it; undefined if there is none. */
  track(run, kind, label) {
    const of = this.ofKind(run, kind), callback = String(label).split(' · ')[0];
    return of.find(a => a.label === label) ?? of.find(a => a.about.callback === callback) ?? of[0];
  }

  /** True if a run has arrays that are shown. */
  hasArrays(run) { return KINDS.some(kind => this.ofKind(run, kind).length); }

  /** Every step at which one of the runs has findings or an array that is shown. */
  stepsOf(runs) {
    const of = runs.flatMap(run => [this.runs.get(run)?.documents[FINDINGS] ?? [], ...KINDS.flatMap(kind => this.ofKind(run, kind).map(track => track.steps))]);
    return [...new Set(of.flat())].sort((a, b) => a - b);
  }

  /** True if a run has arrays that only a newer version of this page knows. */
  hasNewer(run) { return Object.values(this.runs.get(run)?.arrays ?? {}).some(array => array.about.v > FORMAT); }

  /** The kinds of the arrays of runs that this page doesn't know. */
  unknownKinds(runs) {
    const of = runs.flatMap(run => Object.values(this.runs.get(run)?.arrays ?? {}).map(array => array.about).filter(about => about.v > FORMAT || !KNOWN.includes(about.kind)));
    return [...new Set(of.map(about => String(about.kind)))].sort();
  }

  /** The array of a snapshot if it is here; else null, and it is asked for with its neighbours. */
  get(run, tag, step) {
    if (step == null) return null;
    const here = this.arrays.get(`${run}\n${tag}`)?.get(step), track = this.runs.get(run)?.arrays[tag];
    if (here || !track) return here ?? null;
    const middle = track.steps.indexOf(step), around = Math.floor(atOnce(track, 2 * MAX_SPREAD) / 2);
    this.ask(run, tag, track.steps.slice(Math.max(0, middle - around), middle + around + 1), 'near');
    return null;
  }

  /** Arrays of snapshots spread over the training, as far as they are here; the others are asked for. */
  spread(run, tag, most = MAX_SPREAD) {
    const track = this.runs.get(run)?.arrays[tag];
    if (!track) return [];
    // Powers of 2: when a run grows, those that are here are still among those that are wanted.
    const stride = 2 ** Math.max(0, Math.ceil(Math.log2(track.steps.length / atOnce(track, most))));
    const steps = track.steps.filter((_, i) => i % stride === 0 || i === track.steps.length - 1);
    this.ask(run, tag, steps, 'spread');
    const here = this.arrays.get(`${run}\n${tag}`);
    return steps.map(step => here?.get(step)).filter(array => array && !array.missing);
  }

  /** Ask for those arrays of some steps that are not here. */
  ask(run, tag, steps, purpose) {
    const key = `${run}\n${tag}`, asked = `${key}\n${purpose}`, missing = steps.filter(step => !this.arrays.get(key)?.has(step));
    if (!missing.length || this.asked.has(asked)) return;
    this.asked.add(asked);
    const keep = found => {
      if (!this.arrays.has(key)) this.arrays.set(key, new Map());
      // Gone, or damaged there: what can't be read stays empty, and isn't asked for again and again.
      for (const step of missing) this.arrays.get(key).set(step, {step, shape: [], values: new Float32Array(0), missing: true});
      for (const array of found) this.arrays.get(key).set(array.step, array);
      this.changed();
    };
    // Without an answer, it is asked for again when the page is drawn again.
    this.source.arrays(run, tag, missing).then(keep, error => { if (error.refused) keep([]); }).finally(() => this.asked.delete(asked));
  }

  /** True while something is asked for that is not here. */
  waits() { return this.reading > 0 || this.asked.size > 0 || [...this.documents.values()].includes(null); }

  /** The text of a document if it is here; else null, and it is asked for. */
  document(run, tag, step) {
    const key = `${run}\n${tag}\n${step}`;
    if (!this.documents.has(key)) {
      this.documents.set(key, null);
      this.source.document(run, tag, step).then(text => { this.documents.set(key, text); this.changed(); }, error => { if (error.refused) { this.documents.set(key, ''); this.changed(); } else this.documents.delete(key); });
    }
    return this.documents.get(key);
  }
}

/** Axes of the arrays that are drawn. */
const AXES = {attribution: 2, 'attribution signed': 2, shares: 2, trajectory: 3, 'time curve': 2, 'time by step': 1, units: 2, 'wiring share': 2, 'wiring current': 2};

/** Why an array can't be drawn, in words; '' if it can. */
export function whyNotDrawn(kind, shape) {
  const size = shape.join(' × ') || 'a single number', axes = AXES[kind] ?? shape.length;
  if (shape.length !== axes) return `its ${kind} is ${size}: ${axes} ${axes > 1 ? 'axes are' : 'axis is'} needed`;
  if (shape.includes(0)) return `its ${kind} is empty: ${size}`;
  if (kind === 'trajectory' && shape[2] !== 3) return `its trajectory is ${size}: three numbers for each time step are needed`;
  return kind.startsWith('wiring') && shape[0] < shape[1] ? `its ${kind} is ${size}: it needs a row for each feature and neuron` : '';
}

/** How many arrays of a tag may be asked for at once. */
function atOnce({shape}, most) { return Math.max(4, Math.min(most, MAX_BYTES_AT_ONCE / (4 * shape.reduce((a, b) => a * b, 1)))); }

/** Scalars with their infinite numbers, which JSON has as words. */
function decoded(scalars) {
  const number = value => typeof value === 'string' ? Number(value) : value;
  return Object.fromEntries(Object.entries(scalars).map(([tag, curve]) => [tag, Object.fromEntries(Object.entries(curve).map(([name, part]) => [name, Array.isArray(part) ? part.map(number) : part]))]));
}

/** What a run has, from what was known of it and what came since. */
function grown(had, found) {
  const arrays = {...had.arrays}, scalars = {...had.scalars}, documents = {...had.documents};
  const both = (a, b) => [...new Set([...a, ...b])].sort((x, y) => x - y);
  for (const [tag, track] of Object.entries(found.arrays)) arrays[tag] = {...arrays[tag], ...track, steps: both(arrays[tag]?.steps ?? [], track.steps)};
  for (const [tag, steps] of Object.entries(found.documents)) documents[tag] = both(documents[tag] ?? [], steps);
  for (const [tag, curve] of Object.entries(found.scalars)) {
    const places = new Map();
    for (const part of [scalars[tag], curve]) part?.steps.forEach((step, i) => places.set(step, [part, i]));
    const steps = [...places.keys()].sort((a, b) => a - b), column = name => steps.map(step => { const [part, i] = places.get(step); return part[name]?.[i] ?? null; });
    scalars[tag] = {...curve, steps, values: column('values'), ...(curve.low || scalars[tag]?.low ? {low: column('low'), high: column('high')} : {})};
  }
  return {version: found.version, arrays, scalars, documents};
}

export function labelOf(about) {
  return [about.callback, about.target, about.cell].filter(Boolean).join(' · ');
}

/** Why two arrays must not be subtracted, in words; '' if they may. */
export function whyNot(a, b) {
  if (a.about.held_out !== b.about.held_out) return 'they were made on other held-out batches';
  if (a.about.target !== b.about.target) return `their targets differ: ${a.about.target} and ${b.about.target}`;
  if (a.about.method !== b.about.method) return `their methods differ: ${a.about.method} and ${b.about.method}`;
  if (a.about.cell !== b.about.cell) return `their cells differ: ${a.about.cell} and ${b.about.cell}`;
  if (String(a.shape) !== String(b.shape)) return `their sizes differ: ${a.shape.join(' × ')} and ${b.shape.join(' × ')}`;
  const names = [a, b].map(x => JSON.stringify([...(x.about.feature_names ?? [])].sort()));
  return names[0] === names[1] ? '' : 'their features have other names';
}

/** Values of a map (time step, feature) with its features in the order of other names. */
export function inOrder(values, shape, names, wanted) {
  if (!names || !wanted || String(names) === String(wanted)) return values;
  const [rows, columns] = shape, places = wanted.map(name => names.indexOf(name));
  if (places.some(place => place < 0)) return values;
  return Float64Array.from({length: rows * columns}, (_, i) => values[Math.floor(i / columns) * columns + places[i % columns]]);
}

/** What the reader has chosen; kept in the address, so that a link shows the same. */
export class Choice {
  constructor() {
    this.runs = [];
    this.sides = new Map();
    this.step = null;
    this.pinned = null;
    this.follow = true;
    this.options = {};
  }

  /** Columns side by side: each run, or the two sides whose runs are averaged. */
  columns(store) {
    const runs = this.runs.filter(run => store.runs.has(run));
    const sides = ['A', 'B'].map(side => runs.filter(run => (this.sides.get(run) ?? 'A') === side));
    if (sides[1].length && sides[0].length) {
      return sides.map((of, i) => ({name: `${'AB'[i]} (${of.length === 1 ? of[0] : `${of.length} runs`})`, colour: PALETTE[i], runs: of}));
    }
    return runs.map(run => ({name: run, colour: store.colour(run), runs: [run]}));
  }

  toHash() {
    const sides = [...this.sides].filter(([, side]) => side === 'B').map(([run]) => run);
    const state = {runs: this.runs, b: sides, step: this.follow ? null : this.step, pinned: this.pinned, options: this.options};
    return encodeURIComponent(JSON.stringify(state));
  }

  fromHash(text) {
    try {
      const state = JSON.parse(decodeURIComponent(text));
      if (!Array.isArray(state.runs)) return;
      this.runs = state.runs.map(String).slice(0, 64);
      this.sides = new Map((state.b ?? []).map(run => [String(run), 'B']));
      if (Number.isFinite(state.step)) { this.step = state.step; this.follow = false; }
      if (Number.isFinite(state.pinned)) this.pinned = state.pinned;
      if (state.options && typeof state.options === 'object') this.options = state.options;
    } catch { /* An address of something else. */ }
  }
}

/** Why a mean of arrays must not be made, in words; '' if it may. */
export function whyNoMean([first, ...others]) {
  const why = others.map(other => whyNot(first, other)).find(Boolean);
  return why ? `its runs can't be averaged: ${why}` : '';
}

/** The arrays of a kind that the runs of a column have: [{run, tag, steps, shape, about, label}], or {why} without any. */
export function columnTracks(store, column, kind, label) {
  const found = column.runs.map(run => ({...store.track(run, kind, label), run})).filter(({tag}) => tag);
  return found.length ? found : {why: `${column.runs.length > 1 ? 'none of its runs has' : 'it has no'} ${kind}`};
}

/** Which runs of a column are no part of its mean, in words; '' if all are. */
export function leftOut(column, kind, found) {
  const others = column.runs.filter(run => !found.some(part => part.run === run));
  return others.length ? `mean of ${found.length} of ${column.runs.length} runs: ${others.join(', ')} ${others.length > 1 ? 'have' : 'has'} no ${kind}` : '';
}

/** The last step up to a step that all lists of sorted steps have; else the first that all have; null without. */
export function commonStep([first, ...others], step) {
  const has = wanted => others.every(steps => stepAt(steps, wanted) === wanted);
  const begin = first.findLastIndex(s => s <= step);
  for (let i = begin; i >= 0; i--) if (has(first[i])) return first[i];
  for (let i = begin + 1; i < first.length; i++) if (has(first[i])) return first[i];
  return null;
}

/**
 * The array of a column at a step: the mean over its runs, with the SD between them.
 * Returns {step, shape, about, values, sd, runs, but}, null while it is not here, or {why} if it can't be.
 */
export function columnArray(store, column, kind, label, step) {
  const tracks = columnTracks(store, column, kind, label);
  if (tracks.why) return tracks;
  const at = commonStep(tracks.map(({steps}) => steps), step);
  if (at == null) return {why: 'its runs have no step in common'};
  const here = tracks.map(({run, tag, about}) => ({about, tag, run, ...store.get(run, tag, at)}));
  if (here.some(array => !array.values)) return null;
  const found = here.filter(array => !array.missing);
  if (!found.length) return {why: `its ${kind} of step ${at.toLocaleString('en')} is gone or damaged`};
  const first = found[0], why = found.map(({shape}) => whyNotDrawn(kind, shape)).find(Boolean) || whyNoMean(found), but = leftOut(column, `${kind} at this step`, found);
  if (why) return {why};
  if (found.length === 1) return {...first, sd: null, runs: 1, but};
  const values = found.map(a => inOrder(a.values, a.shape, a.about.feature_names, first.about.feature_names));
  const {mean, sd} = meanAndSd(values);
  return {...first, values: mean, sd, runs: found.length, but};
}
