/**
 * Which executors there are: a number that always runs, more while slow statements hold them, and a spare one that takes a
 * dead or a missing one's place at once.
 */
import type { Clock } from "../clock.ts";
import type { ExecutorLimits } from "./executor.ts";
import type { OpenLink } from "./executor-link.ts";
import type { ExecutorLog } from "./options.ts";
import { Pipeline, type PipelineEvents } from "./pipeline.ts";
import { rendezvous } from "./rendezvous.ts";

/** Restarts of executors that die before they take a call wait longer and longer. */
const RESTART_DELAY_MS = 25;
const RESTART_DELAY_MS_MAX = 5_000;
/** After this many the start is given up. */
const FAILED_STARTS_MAX = 3;

/** The first executor has the machine for itself for this long: the server starts at the same time. */
const SECOND_START_DELAY_MS = 150;

/** An executor above the minimum that had nothing to do for this long ends. */
const SURPLUS_IDLE_MS = 60_000;

export interface ExecutorSetOptions {
  readonly limits: ExecutorLimits;
  readonly clock: Clock;
  readonly random: () => number;
  readonly log: ExecutorLog;
  readonly openLink: OpenLink;
  readonly events: PipelineEvents;
  /** An executor takes calls no more, without having died. */
  onRetired(pipeline: Pipeline): void;
  /** Other names belong to other executors now. */
  onCountChanged(): void;
}

export class ExecutorSet {
  readonly #options: ExecutorSetOptions;
  /** By slot. */
  readonly #active: Pipeline[] = [];
  #spare: Pipeline | undefined;
  readonly #living = new Set<Pipeline>();
  readonly #retired = new Set<Pipeline>();
  #restarts = 0;
  #failedStarts = 0;
  #starting: { resolve(): void; reject(error: Error): void } | undefined;
  #onAllDead: (() => void) | undefined;
  #closing = false;

  constructor(options: ExecutorSetOptions) {
    this.#options = options;
  }

  /** Those that take calls, or will when they have started. */
  get active(): readonly Pipeline[] {
    return this.#active;
  }

  /** Every one that is not dead. */
  get living(): ReadonlySet<Pipeline> {
    return this.#living;
  }

  get spare(): Pipeline | undefined {
    return this.#spare;
  }

  /** One more is about to take calls. */
  get isGrowing(): boolean {
    return this.#spare?.state === "starting" || this.#active.some(({ state }) => state === "starting");
  }

  /** How many died without being told to. */
  get restarts(): number {
    return this.#restarts;
  }

  /** Resolves when the first executor takes calls; the others follow by themselves. */
  start(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#starting = { resolve, reject };
      this.#fill();
    });
  }

  /** The executor that a name belongs to. */
  preferred(name: string): Pipeline | undefined {
    return this.#active[rendezvous(name, this.#active.length)];
  }

  /** The one with the least to do, of those that take calls and are not refused. */
  best(isRefused: (pipeline: Pipeline) => boolean): Pipeline | undefined {
    let best: Pipeline | undefined;
    for (const pipeline of this.#active)
      if (pipeline.takesCalls && !isRefused(pipeline) && (best === undefined || pipeline.load < best.load))
        best = pipeline;
    return best;
  }

  /** One more executor for calls; undefined when there may be no more, or none is ready. */
  grow(): Pipeline | undefined {
    const { limits, clock, log } = this.#options;
    if (this.#active.length >= limits.executorCountMax) return undefined;
    const spare = this.#spare;
    if (spare === undefined || !spare.takesCalls) {
      this.#fill();
      return undefined;
    }
    this.#spare = undefined;
    spare.lastUsedMs = clock.now();
    this.#put(spare, this.#active.length);
    log("info", "an executor was added", { executors: this.#active.length });
    this.#fill();
    return spare;
  }

  /** To be called about once a second. */
  tidy(nowMs: number): void {
    for (const pipeline of this.#living) pipeline.tidy();
    this.#retireSurplus(nowMs);
    for (const pipeline of this.#living) this.#recycle(pipeline);
    if (this.#starting === undefined) this.#fill();
  }

  ready(pipeline: Pipeline): void {
    if (this.#starting === undefined) {
      this.#fill();
      return;
    }
    this.#starting.resolve();
    this.#starting = undefined;
    pipeline.lastUsedMs = this.#options.clock.now();
    this.#options.clock.after(SECOND_START_DELAY_MS, () => this.#fill());
  }

  unfit(message: string): void {
    this.#options.log("error", "an executor cannot start", { error: message });
    this.#starting?.reject(new Error(message));
    this.#starting = undefined;
  }

  /** Puts another one into a dead one's place. */
  dead(pipeline: Pipeline, how: string): void {
    this.#living.delete(pipeline);
    if (this.#living.size === 0) this.#onAllDead?.();
    if (this.#retired.delete(pipeline) || this.#closing) return;
    this.#restarts++;
    this.#options.log("warn", "an executor died and is replaced", { slot: pipeline.slot, how, calls: pipeline.count });
    // One that never took a call says that the next one may fare no better.
    this.#failedStarts = pipeline.wasReady ? 0 : this.#failedStarts + 1;
    if (this.#starting !== undefined && this.#failedStarts > FAILED_STARTS_MAX) {
      this.#starting.reject(new Error(`executors die as soon as they start: ${how}`));
      this.#starting = undefined;
      return;
    }
    this.#replace(pipeline);
  }

  /** Ends all of them; kills those that do not end in time. */
  async close(graceMs: number): Promise<void> {
    this.#closing = true;
    if (this.#living.size === 0) return;
    const allDead = new Promise<void>((resolve) => {
      this.#onAllDead = resolve;
    });
    for (const pipeline of this.#living) pipeline.end();
    const stopTimer = this.#options.clock.after(graceMs, () => {
      for (const pipeline of this.#living) pipeline.kill();
    });
    await allDead;
    stopTimer();
  }

  #launch(slot: number): Pipeline {
    const { clock, openLink, events } = this.#options;
    const pipeline = new Pipeline(slot, clock.now(), openLink, events);
    this.#living.add(pipeline);
    return pipeline;
  }

  /** Starts what is missing, one after another: each takes a core for a while. */
  #fill(): void {
    const { executorCountMin, executorCountMax } = this.#options.limits;
    if (this.#closing || this.#active.some(({ state }) => state === "starting")) return;
    if (this.#active.length < executorCountMin) this.#put(this.#launch(this.#active.length), this.#active.length);
    else if (this.#spare === undefined && this.#active.length < executorCountMax) this.#spare = this.#launch(-1);
  }

  #put(pipeline: Pipeline, slot: number): void {
    const isNew = slot === this.#active.length;
    pipeline.slot = slot;
    this.#active[slot] = pipeline;
    if (isNew) this.#options.onCountChanged();
  }

  #replace(pipeline: Pipeline): void {
    const { random } = this.#options;
    const delayMs =
      this.#failedStarts === 0
        ? 0
        : Math.min(RESTART_DELAY_MS_MAX, RESTART_DELAY_MS * 2 ** this.#failedStarts) * (0.5 + random() / 2);
    if (pipeline === this.#spare) {
      this.#spare = undefined;
      this.#later(delayMs, () => this.#fill());
      return;
    }
    const { slot } = pipeline;
    if (this.#active[slot] !== pipeline) return;
    const spare = this.#spare;
    if (spare?.takesCalls) {
      this.#spare = undefined;
      this.#put(spare, slot);
      this.#later(delayMs, () => this.#fill());
      return;
    }
    this.#later(delayMs, () => {
      if (this.#active[slot] === pipeline) this.#put(this.#launch(slot), slot);
    });
  }

  #later(delayMs: number, run: () => void): void {
    if (delayMs === 0) run();
    else
      this.#options.clock.after(delayMs, () => {
        if (!this.#closing) run();
      });
  }

  #retireSurplus(nowMs: number): void {
    const last = this.#active.at(-1);
    if (last === undefined || this.#active.length <= this.#options.limits.executorCountMin) return;
    if (!last.isIdle || nowMs - last.lastUsedMs < SURPLUS_IDLE_MS) return;
    this.#active.pop();
    this.#retire(last);
    this.#options.onCountChanged();
    this.#options.log("info", "an idle executor was ended", { executors: this.#active.length });
  }

  /** Replaces one that is no good any more, as soon as nothing runs there. */
  #recycle(pipeline: Pipeline): void {
    if (pipeline.state !== "ready") return;
    // Memory that a statement needed may stay with the process; every later one would be interrupted for it.
    if (pipeline.residentBytes > this.#options.limits.executorMemoryBytesMax) pipeline.isSpent = true;
    if (!pipeline.isSpent || !pipeline.isIdle) return;
    this.#options.log("info", "a spent executor is replaced", {
      slot: pipeline.slot,
      residentBytes: pipeline.residentBytes,
    });
    this.#retire(pipeline);
    this.#replace(pipeline);
  }

  #retire(pipeline: Pipeline): void {
    this.#retired.add(pipeline);
    pipeline.state = "dead";
    this.#options.onRetired(pipeline);
    pipeline.end();
  }
}
