/** What the rules found, in words. */
import {h} from '../draw.js';
import {stepAt} from '../math.js';
import {FINDINGS} from '../state.js';
import {View} from './common.js';

const WORDS = {problem: 'problem', warning: 'warning', info: 'found', good: 'good'};
const ORDER = ['problem', 'warning', 'info', 'good'];

/** The findings of a run as of a step: {step, findings: [{severity, sentence, action, …}]}, null while they are not here, or {why}. */
function findingsAt(store, run, step) {
  const at = stepAt(store.runs.get(run)?.documents[FINDINGS] ?? [], step);
  if (at == null) return {why: 'it has no findings'};
  const text = store.document(run, FINDINGS, at);
  if (text == null) return null;
  try {
    const findings = JSON.parse(text).sort((a, b) => ORDER.indexOf(a.severity) - ORDER.indexOf(b.severity));
    return {step: at, findings};
  } catch { return {why: `its findings of step ${at.toLocaleString('en')} are gone or damaged`}; }
}

/** How many faults there are, in words: "1 problem, 2 warnings". */
export function faults(findings) {
  const count = severity => findings.filter(f => f.severity === severity).length;
  return ['problem', 'warning'].filter(count).map(severity => `${count(severity)} ${severity}${count(severity) > 1 ? 's' : ''}`).join(', ') || 'no fault found';
}

export class Findings extends View {
  constructor(app) {
    super(app, 'findings', 'Findings', 'What the rules found at this step, the most serious first, and what to do.');
    this.shown = new Map();
  }

  /** The findings as of the shown step; while they are on their way, those that were shown last. */
  findings(run) {
    const found = findingsAt(this.store, run, this.choice.step) ?? this.shown.get(run) ?? null;
    this.shown.set(run, found);
    return found;
  }

  draw() {
    const runs = this.columns().flatMap(column => column.runs).slice(0, 4);
    if (!runs.some(run => this.store.runs.get(run)?.documents[FINDINGS])) return null;
    this.table = [['run', 'step', 'severity', 'finding', 'what to do']];
    return runs.map(run => {
      const column = {name: run, colour: this.store.colour(run)}, found = this.findings(run);
      if (!found || found.why) return this.instead(column, found);
      const {step, findings} = found;
      for (const f of findings) this.table.push([run, step, f.severity, f.sentence, f.action]);
      const items = findings.map(f => h('li', {}, h('b', {className: WORDS[f.severity] ? f.severity : '', textContent: WORDS[f.severity] ?? String(f.severity)}),
        h('div', {}, String(f.sentence), ['problem', 'warning'].includes(f.severity) ? h('p', {textContent: `→ ${f.action}`}) : null)));
      const caption = this.caption(column, this.at(step));
      caption.append(h('b', {className: ['problem', 'warning'].find(word => findings.some(f => f.severity === word)) ?? 'good', textContent: faults(findings)}));
      return h('figure', {}, caption, h('ul', {className: 'findings'}, ...items));
    });
  }
}
