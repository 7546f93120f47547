/** Where runs come from: a server, or the page itself. */

/** Arrays of a binary answer: {step, shape, values}. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  return head.steps.map((step, i) => {
    const shape = head.shapes[i], size = shape.reduce((a, b) => a * b, 1);
    const values = new Float32Array(buffer, at, size);
    at += 4 * size;
    return {step, shape, values};
  });
}

/** Asks a server: the command's own, or TensorBoard. */
export class HttpSource {
  constructor(base = './') { this.base = base; this.live = true; }

  async ask(name, query) {
    const answer = await fetch(`${this.base}${name}?${new URLSearchParams(query)}`);
    if (!answer.ok) throw Object.assign(new Error(`${name}: HTTP ${answer.status}`), {refused: true});
    return answer;
  }

  async runs() { return (await this.ask('runs', {})).json(); }
  async run(run, version = '') { return (await this.ask('run', {run, version})).json(); }
  async summary(run) { return (await this.ask('summary', {run})).json(); }
  async document(run, tag, step) { return (await (await this.ask('document', {run, tag, step})).json()).text; }
  async arrays(run, tag, steps) { return unpack(await (await this.ask('arrays', {run, tag, steps: steps.join(',')})).arrayBuffer()); }
}

/**
 * Holds all in the page itself: `{format, runs: {run: …}, arrays: {run: {tag: base64 of the same bytes}},
 * documents: {run: {tag: {step: text}}}}`.
 */
export class EmbeddedSource {
  constructor(data) { this.data = data; this.unpacked = new Map(); this.live = false; }

  async runs() { return {format: this.data.format, runs: Object.keys(this.data.runs), note: ''}; }
  async run(run, version = '') {
    const found = this.data.runs[run];
    return found.version === version ? {version} : found;
  }
  async summary(run) { return {scalars: this.data.runs[run].scalars}; }
  async document(run, tag, step) { return this.data.documents[run][tag][step]; }
  async arrays(run, tag, steps) {
    const key = `${run}\n${tag}`;
    if (!this.unpacked.has(key)) {
      const bytes = Uint8Array.from(atob(this.data.arrays[run][tag]), c => c.charCodeAt(0));
      this.unpacked.set(key, new Map(unpack(bytes.buffer).map(array => [array.step, array])));
    }
    return steps.map(step => this.unpacked.get(key).get(step)).filter(Boolean);
  }
}
