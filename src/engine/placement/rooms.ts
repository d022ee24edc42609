/** Room on a stage that is full: who comes waits until what is worth least has left. */
import type { Clock } from "../../clock.ts";
import type { CatalogRow } from "../catalog.ts";
import type { Budget, StageUsage } from "./budgets.ts";

/** What may leave a stage. */
export interface Victims {
  /** The least valuable first; as many as are needed, or all there are. */
  readonly rows: readonly CatalogRow[];
  /** True when others could leave, were they not in use right now. */
  readonly hasBusy: boolean;
}

export interface RoomHost {
  readonly clock: Clock;
  /** What is worth less than `worthMax`, to make up for what is missing; nothing pinned, in use, or worked on. */
  victims(missing: StageUsage, worthMax: number): Victims;
  /** Brings a database to the stage behind; rejects when it stays. */
  evict(row: CatalogRow): Promise<void>;
}

interface Guest {
  readonly sizeBytes: number;
  readonly worthMax: number;
  readonly turn: PromiseWithResolvers<() => void>;
}

/** Databases that leave at one time. */
const evictionCountMax = 16;

/** Longest wait for room. */
const waitMsMax = 30_000;

/** When nothing can leave because all is in use, it is tried again after this. */
const againMs = 25;

/** Databases begin to leave when so much of the budget is used, so that there is room for who comes. */
const watermark = 0.9;

export class Room {
  readonly #budget: Budget;
  readonly #host: RoomHost;
  /** In the order of their coming. */
  #guests: Guest[] = [];
  readonly #leaving = new Map<string, number>();
  #cancelAgain: (() => void) | undefined;
  #isPumping = false;

  constructor(budget: Budget, host: RoomHost) {
    this.#budget = budget;
    this.#host = host;
  }

  get budget(): Budget {
    return this.#budget;
  }

  get waiting(): number {
    return this.#guests.length;
  }

  /**
   * Takes room; to be given back when the database is there, or did not come. Waits while something leaves for it. Throws
   * STAGE_FULL, before anything is written, when nothing can leave that is worth less than `worthMax`.
   */
  async take(sizeBytes: number, worthMax: number, signal?: AbortSignal): Promise<() => void> {
    const budget = this.#budget;
    if (budget.isTooLarge(sizeBytes)) throw budget.full();
    signal?.throwIfAborted();
    const free = this.#guests.length === 0 ? budget.tryReserve(sizeBytes) : undefined;
    const release = free ?? (await this.#wait({ sizeBytes, worthMax, turn: Promise.withResolvers() }, signal));
    try {
      await budget.requireDisk();
    } catch (error) {
      release();
      throw error;
    }
    return release;
  }

  /** To be called regularly: sees to it that there is room before somebody comes. Not for a stage that may be full. */
  keepFree(): void {
    const excess = this.#budget.above(watermark);
    if (excess.bytes > 0 || excess.count > 0) this.#evict(excess, Number.POSITIVE_INFINITY);
  }

  /** Lets go what is more than the budget. */
  relieve(): void {
    const excess = this.#budget.above(1);
    if (excess.bytes > 0 || excess.count > 0) this.#evict(excess, Number.POSITIVE_INFINITY);
  }

  async #wait(guest: Guest, signal: AbortSignal | undefined): Promise<() => void> {
    this.#guests.push(guest);
    const leave = (error: unknown) => {
      this.#guests = this.#guests.filter((other) => other !== guest);
      guest.turn.reject(error);
      this.#pump();
    };
    const cancelTimer = this.#host.clock.after(waitMsMax, () => leave(this.#budget.full()));
    const abort = () => leave(signal?.reason);
    signal?.addEventListener("abort", abort);
    this.#pump();
    try {
      return await guest.turn.promise;
    } finally {
      cancelTimer();
      signal?.removeEventListener("abort", abort);
    }
  }

  #pump(): void {
    // Refusing one lets the next be looked at, here and not deeper.
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      for (let guest = this.#guests[0]; guest !== undefined; guest = this.#guests[0]) {
        const release = this.#budget.tryReserve(guest.sizeBytes);
        if (release !== undefined) guest.turn.resolve(release);
        else if (this.#makeWay(guest)) return;
        else guest.turn.reject(this.#budget.full());
        this.#guests.shift();
      }
    } finally {
      this.#isPumping = false;
    }
  }

  /** False when nothing can leave for the one whose turn it is. */
  #makeWay(guest: Guest): boolean {
    let { bytes, count } = this.#budget.missing(guest.sizeBytes);
    // Room for those who come next, too: what leaves for this one may as well leave for them.
    for (const other of this.#guests) {
      if (other === guest || other.worthMax < guest.worthMax) continue;
      bytes += other.sizeBytes;
      count++;
    }
    const hasBusy = this.#evict({ bytes, count }, guest.worthMax);
    if (this.#leaving.size > 0) return true;
    if (!hasBusy) return false;
    this.#cancelAgain ??= this.#host.clock.after(againMs, () => {
      this.#cancelAgain = undefined;
      this.#pump();
    });
    return true;
  }

  /** Begins what makes up for it, less what is leaving already. True when more could leave later. */
  #evict({ bytes, count }: StageUsage, worthMax: number): boolean {
    let missingBytes = bytes;
    for (const sizeBytes of this.#leaving.values()) missingBytes -= sizeBytes;
    const missingCount = count - this.#leaving.size;
    if (missingBytes <= 0 && missingCount <= 0) return false;
    if (this.#leaving.size >= evictionCountMax) return true;
    const { rows, hasBusy } = this.#host.victims({ bytes: missingBytes, count: missingCount }, worthMax);
    for (const row of rows) {
      if (this.#leaving.size >= evictionCountMax) break;
      this.#leaving.set(row.id, row.sizeBytes);
      const leave = () => {
        this.#leaving.delete(row.id);
        this.#pump();
      };
      // Why it stays is in its operation.
      this.#host.evict(row).then(leave, leave);
    }
    return hasBusy;
  }
}
