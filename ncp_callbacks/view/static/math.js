/** Numbers of the page: no DOM here, so that everything can be tested against numpy. */

/** The given quantile of finite values, by the nearest rank; 0 without any. */
export function quantile(values, q) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : 0;
}

/** The smallest and the largest finite value; [0, 1] without any. */
export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value != null && Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 1];
}

/** Places of values that show all of a long line: of each stretch, those of its smallest and its largest. */
export function envelope(values, most) {
  const size = Math.ceil(2 * values.length / most);
  if (size <= 2) return values.map((_, i) => i);
  const places = [];
  for (let first = 0; first < values.length; first += size) {
    let [least, largest] = [first, first];
    for (let i = first; i < Math.min(values.length, first + size); i++) {
      if (values[i] < values[least] || values[least] == null) least = i;
      if (values[i] > values[largest] || values[largest] == null) largest = i;
    }
    places.push(Math.min(least, largest), ...(least === largest ? [] : [Math.max(least, largest)]));
  }
  return places;
}

/** The smallest of 1, 2, 5 times a power of ten that is not below a value; 1 for none. */
export function nice(value) {
  if (!(value > 0) || !Number.isFinite(value)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const factor of [1, 2, 5, 10]) if (factor * power >= value * 0.999) return factor * power;
  return value;
}

/** Places near those that are wanted, at least a distance apart, and from a first to a last place if there is room. */
export function spacedOut(wanted, distance, first, last) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]), places = [...wanted];
  order.forEach((i, k) => { places[i] = Math.max(places[i], k ? places[order[k - 1]] + distance : first); });
  let limit = last;
  for (const i of order.reverse()) { places[i] = Math.min(places[i], limit); limit = places[i] - distance; }
  return places;
}

/** A number with three digits, for people. */
export function short(value) {
  if (value === Infinity || value === -Infinity) return value > 0 ? '∞' : '−∞';
  if (value == null || Number.isNaN(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1e5 || (size && size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

/** A number of the log: it has null for NaN, and undefined is none at all. */
export function logged(value) { return value === null || Number.isNaN(value) ? 'NaN' : short(value); }

/** The largest of the sorted steps that is not above a step; the first if all are; null without. */
export function stepAt(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1; else high = middle;
  }
  return steps.length ? steps[Math.max(0, low - 1)] : null;
}

/** Mean of arrays of one size, cell by cell, and the SD between them (0 for one array). */
export function meanAndSd(arrays) {
  const size = arrays[0].length, mean = new Float64Array(size), sd = new Float64Array(size);
  for (let i = 0; i < size; i++) {
    for (const a of arrays) mean[i] += a[i] / arrays.length;
    for (const a of arrays) sd[i] += (a[i] - mean[i]) ** 2 / Math.max(1, arrays.length - 1);
    sd[i] = Math.sqrt(sd[i]);
  }
  return {mean, sd};
}

/** Shares of the columns in a map (rows, columns): sums of absolute values over all of them. */
export function columnShares(values, rows, columns) {
  const shares = new Array(columns).fill(0);
  let total = 0;
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    const size = Math.abs(values[r * columns + c]);
    if (Number.isFinite(size)) { shares[c] += size; total += size; }
  }
  return shares.map(share => total ? share / total : 0);
}

/**
 * The rotation or reflection that brings points nearest to others (orthogonal Procrustes,
 * Schönemann 1966), both (n, 3) row by row; the scale that makes both of one size; and R², the share
 * of the others' variance that the points meet with the best scale.
 */
export function procrustes(from, onto) {
  const n = Math.min(from.length, onto.length) / 3;
  const both = [];
  for (let i = 0; i < n; i++) {
    const finite = [0, 1, 2].every(k => Number.isFinite(from[3 * i + k]) && Number.isFinite(onto[3 * i + k]));
    if (finite) both.push(i);
  }
  const centre = points => [0, 1, 2].map(k => both.reduce((sum, i) => sum + points[3 * i + k], 0) / both.length);
  const a = centre(from), b = centre(onto);
  const M = [[0, 0, 0], [0, 0, 0], [0, 0, 0]];
  let sizeA = 0, sizeB = 0;
  for (const i of both) for (let p = 0; p < 3; p++) {
    const x = from[3 * i + p] - a[p];
    sizeA += x * x;
    sizeB += (onto[3 * i + p] - b[p]) ** 2;
    for (let q = 0; q < 3; q++) M[p][q] += x * (onto[3 * i + q] - b[q]);
  }
  const {U, S, V} = svd3(M);
  const Q = [0, 1, 2].map(i => [0, 1, 2].map(j => [0, 1, 2].reduce((sum, k) => sum + U[i][k] * V[j][k], 0)));
  const trace = S[0] + S[1] + S[2];
  return {Q, a, b, scale: sizeA ? Math.sqrt(sizeB / sizeA) : 1, r2: sizeA && sizeB ? trace ** 2 / (sizeA * sizeB) : NaN};
}

/** Points (n, 3) moved as `procrustes` found. */
export function moved(points, {Q, a, b, scale}) {
  const found = new Float64Array(points.length);
  for (let i = 0; i < points.length; i += 3) for (let q = 0; q < 3; q++) {
    let sum = 0;
    for (let p = 0; p < 3; p++) sum += (points[i + p] - a[p]) * Q[p][q];
    found[i + q] = b[q] + scale * sum;
  }
  return found;
}

/** Singular value decomposition of a 3 × 3 matrix, M = U diag(S) V', by one-sided Jacobi rotations. */
function svd3(M) {
  const U = M.map(row => [...row]), V = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  for (let sweep = 0; sweep < 30; sweep++) for (const [p, q] of [[0, 1], [0, 2], [1, 2]]) {
    let alpha = 0, beta = 0, gamma = 0;
    for (let k = 0; k < 3; k++) {
      alpha += U[k][p] ** 2; beta += U[k][q] ** 2; gamma += U[k][p] * U[k][q];
    }
    if (gamma === 0 || Math.abs(gamma) < 1e-14 * Math.sqrt(alpha * beta)) continue;
    const zeta = (beta - alpha) / (2 * gamma);
    const t = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
    const c = 1 / Math.sqrt(1 + t * t), s = c * t;
    for (const X of [U, V]) for (let k = 0; k < 3; k++) {
      const x = X[k][p], y = X[k][q];
      X[k][p] = c * x - s * y; X[k][q] = s * x + c * y;
    }
  }
  const S = [0, 1, 2].map(j => Math.hypot(U[0][j], U[1][j], U[2][j]));
  const largest = Math.max(...S);
  for (let j = 0; j < 3; j++) for (let i = 0; i < 3; i++) U[i][j] = S[j] > 1e-12 * largest ? U[i][j] / S[j] : 0;
  completed(U, S, largest);
  return {U, S, V};
}

/** Fill columns of U that belong to singular values of 0, so that it stays orthogonal. */
function completed(U, S, largest) {
  for (let j = 0; j < 3; j++) {
    if (S[j] > 1e-12 * largest) continue;
    for (let axis = 0; axis < 3; axis++) {
      const v = [0, 1, 2].map(i => Number(i === axis));
      for (let k = 0; k < 3; k++) {
        if (k === j || (S[k] <= 1e-12 * largest && k > j)) continue;
        const dot = v.reduce((sum, x, i) => sum + x * U[i][k], 0);
        for (let i = 0; i < 3; i++) v[i] -= dot * U[i][k];
      }
      const length = Math.hypot(...v);
      if (length > 0.5) { for (let i = 0; i < 3; i++) U[i][j] = v[i] / length; break; }
    }
  }
}

/**
 * Debiased linear CKA of two sets of states (n, p) and (n, q) at the same n places: 1 the same up to
 * rotation, about 0 unrelated (Kornblith et al. 2019, with the unbiased HSIC of Song et al. 2012).
 * NaN with fewer than 4 places.
 */
export function debiasedCka(a, b, n) {
  if (n < 4) return NaN;
  const K = gram(a, n), L = gram(b, n);
  const kl = unbiasedHsic(K, L, n), kk = unbiasedHsic(K, K, n), ll = unbiasedHsic(L, L, n);
  return kk > 0 && ll > 0 ? kl / Math.sqrt(kk * ll) : NaN;
}

function gram(values, n) {
  const p = values.length / n, means = new Float64Array(p), K = new Float64Array(n * n);
  for (let i = 0; i < n; i++) for (let k = 0; k < p; k++) means[k] += values[i * p + k] / n;
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
    if (i === j) continue;
    let sum = 0;
    for (let k = 0; k < p; k++) sum += (values[i * p + k] - means[k]) * (values[j * p + k] - means[k]);
    K[i * n + j] = sum;
  }
  return K;
}

function unbiasedHsic(K, L, n) {
  let trace = 0, sumK = 0, sumL = 0, cross = 0;
  for (let i = 0; i < n; i++) {
    let rowK = 0, rowL = 0;
    for (let j = 0; j < n; j++) {
      rowK += K[i * n + j]; rowL += L[i * n + j]; trace += K[i * n + j] * L[i * n + j];
    }
    sumK += rowK; sumL += rowL; cross += rowK * rowL;
  }
  return (trace + sumK * sumL / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3));
}
