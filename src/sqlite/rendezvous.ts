/**
 * Rendezvous hashing: the place with the highest score for a name. When one place comes or goes, only the names that are
 * moved to or from it change.
 */
export function rendezvous(name: string, places: number): number {
  let seed = 0x811c9dc5;
  for (let index = 0; index < name.length; index++) seed = Math.imul(seed ^ name.charCodeAt(index), 0x01000193);
  let best = 0;
  let bestScore = -1;
  for (let place = 0; place < places; place++) {
    const score = mix(seed ^ Math.imul(place + 1, 0x9e3779b1));
    if (score > bestScore) {
      best = place;
      bestScore = score;
    }
  }
  return best;
}

/** Spreads every bit of a 32-bit number over all others. */
function mix(value: number): number {
  let hash = value;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
