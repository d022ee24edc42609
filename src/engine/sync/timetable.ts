/** Many things, each due at its time, and one timer for all of them; none while nothing is due. */
import type { Clock } from "../../clock.ts";

/** Something that is due at some time. Made by `Timetable.add`-ers, kept by them. */
export interface Due {
  /** By the clock's `now()`. Set by the timetable. */
  dueAtMs: number;
  /** Its place in the timetable, or -1. Set by the timetable. */
  place: number;
  run(): void;
}

/** What falls due within this time runs together, so that many things close to one another wake the process once. */
const granularityMs = 10;

/** A binary heap by time. */
export class Timetable {
  readonly #clock: Clock;
  readonly #heap: Due[] = [];
  #cancelTimer: (() => void) | undefined;
  #timerAtMs = Number.POSITIVE_INFINITY;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get size(): number {
    return this.#heap.length;
  }

  /** Makes it due at a time, whether it was due before or not. */
  set(due: Due, atMs: number): void {
    due.dueAtMs = atMs;
    if (due.place < 0) {
      due.place = this.#heap.length;
      this.#heap.push(due);
    }
    this.#down(this.#up(due.place));
    this.#arm();
  }

  /** The same, unless it is due sooner. */
  setBy(due: Due, atMs: number): void {
    if (due.place < 0 || due.dueAtMs > atMs) this.set(due, atMs);
  }

  /** Harmless when it is not due. */
  remove(due: Due): void {
    if (due.place < 0) return;
    this.#take(due);
    this.#arm();
  }

  #take(due: Due): void {
    const { place } = due;
    due.place = -1;
    const last = this.#heap.pop();
    if (last !== undefined && last !== due) {
      this.#heap[place] = last;
      last.place = place;
      this.#down(this.#up(place));
    }
  }

  clear(): void {
    for (const due of this.#heap.splice(0)) due.place = -1;
    this.#arm();
  }

  #runDue(): void {
    this.#cancelTimer = undefined;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
    const untilMs = this.#clock.now();
    // All of them first: what becomes due by running waits for the next round.
    const due: Due[] = [];
    for (let first = this.#heap[0]; first !== undefined && first.dueAtMs <= untilMs; first = this.#heap[0]) {
      this.#take(first);
      due.push(first);
    }
    for (const each of due) each.run();
    this.#arm();
  }

  #arm(): void {
    const first = this.#heap[0];
    const atMs =
      first === undefined ? Number.POSITIVE_INFINITY : Math.ceil(first.dueAtMs / granularityMs) * granularityMs;
    // A timer that rings too soon finds nothing due and is set anew: cheaper than moving it with every change.
    if (atMs >= this.#timerAtMs && first !== undefined) return;
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#timerAtMs = atMs;
    if (first === undefined) return;
    this.#cancelTimer = this.#clock.after(Math.max(0, atMs - this.#clock.now()), () => this.#runDue());
  }

  /** Returns where it is then. */
  #up(from: number): number {
    let place = from;
    while (place > 0) {
      const parent = (place - 1) >> 1;
      if (!this.#swapIfEarlier(place, parent)) break;
      place = parent;
    }
    return place;
  }

  #down(from: number): void {
    for (let place = from; ; ) {
      const left = 2 * place + 1;
      const right = left + 1;
      let earliest = left;
      if (this.#at(right) < this.#at(left)) earliest = right;
      if (earliest >= this.#heap.length || !this.#swapIfEarlier(earliest, place)) return;
      place = earliest;
    }
  }

  #at(place: number): number {
    return this.#heap[place]?.dueAtMs ?? Number.POSITIVE_INFINITY;
  }

  #swapIfEarlier(place: number, parent: number): boolean {
    const lower = this.#heap[place];
    const upper = this.#heap[parent];
    if (lower === undefined || upper === undefined || lower.dueAtMs >= upper.dueAtMs) return false;
    this.#heap[place] = upper;
    upper.place = place;
    this.#heap[parent] = lower;
    lower.place = parent;
    return true;
  }
}
