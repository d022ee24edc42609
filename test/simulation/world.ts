/** A machine with one server on it, a bucket, and time: what dies, what goes on, and how everybody waits. */
import { join } from "node:path";
import type { Engine } from "../../src/engine/engine.ts";
import type { FailPoint } from "../../src/fail-points.ts";
import { Failure } from "../../src/failure/failure.ts";
import { type Fault, FaultyStore, seededFaults } from "../../src/objects/faulty.ts";
import type { ObjectStore } from "../../src/objects/object-store.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { type MemoryBucket, MemoryObjectStore } from "../support/memory-object-store.ts";
import { SimulatedDisk } from "./disk.ts";
import { Life } from "./life.ts";
import { type Loss, Violation } from "./model.ts";
import type { Profile } from "./profile.ts";
import type { Random } from "./random.ts";

/** Longest that anything may take, in the time of the simulation. */
const patienceMs = 300_000;
/** Turns of the event loop that anything may take without time going on. */
const turnCountMax = 100_000;
/** So much at most at one time: less than any deadline. */
const waitSliceMs = 2_000;

export interface WorldOptions {
  readonly folder: string;
  readonly random: Random;
  readonly profile: Profile;
  /** Stands between the server and the bucket: to break it on purpose. */
  readonly between?: ((store: ObjectStore) => ObjectStore) | undefined;
  readonly betweenStage?: ((stage: RemoteStage) => RemoteStage) | undefined;
  readonly trace: ((line: string) => void) | undefined;
  /** The server has just died; nothing that it still does counts. */
  onDeath(loss: Loss): void;
}

export class World {
  readonly clock = new ManualClock();
  readonly bucket: MemoryBucket = new Map();
  readonly disk: SimulatedDisk;
  readonly reached = new Set<FailPoint>();
  readonly done = new Map<string, number>();
  /** The bucket cannot be reached. */
  isAway = false;
  /** Nothing goes wrong with the bucket any more. */
  isCalm = false;
  /** Dies there, after that many more times. */
  armed: { readonly point: FailPoint; left: number; readonly loss: Loss } | undefined;
  readonly #options: WorldOptions;
  readonly #running = new Map<Promise<void>, string>();
  #life: Life;
  #problem: string | undefined;
  #digest = 0;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.disk = new SimulatedDisk(join(options.folder, "machine"), options.random.split());
    this.#life = this.#newLife();
  }

  get life(): Life {
    return this.#life;
  }

  get engine(): Engine {
    return this.#life.engine;
  }

  get problem(): string | undefined {
    return this.#problem;
  }

  get digest(): string {
    return (this.#digest >>> 0).toString(16);
  }

  /** Names of what was called and is not answered. */
  get running(): readonly string[] {
    return [...this.#running.values()];
  }

  say(line: string): void {
    for (let index = 0; index < line.length; index++)
      this.#digest = (Math.imul(this.#digest, 31) + line.charCodeAt(index)) | 0;
    this.#options.trace?.(`${this.clock.now().toFixed(0).padStart(8)} ${line}`);
  }

  fail(what: string, error: unknown): void {
    if (this.#problem !== undefined) return;
    this.#problem = `${what}: ${textOf(error)}`;
    this.say(`PROBLEM ${what}`);
  }

  /** Calls something that is answered some time, unless the server dies before. */
  run(name: string, work: () => Promise<void>, after?: () => void): void {
    const life = this.#life;
    this.say(name);
    const running = work().then(
      () => {
        if (life.isDead) return;
        this.say(`${name}: done`);
        const [kind = ""] = name.split(" ");
        this.done.set(kind, (this.done.get(kind) ?? 0) + 1);
      },
      (error: unknown) => {
        if (!life.isDead) this.fail(name, error);
      },
    );
    // It may have died in the call itself.
    if (life.isDead) return;
    this.#running.set(running, name);
    void running.then(() => {
      if (life.isDead) return;
      this.#running.delete(running);
      after?.();
    });
  }

  /** Ends the server at once, whatever runs. */
  kill(loss: Loss): void {
    this.say(`the ${loss} dies`);
    this.armed = undefined;
    if (loss === "process") this.disk.processDies();
    else if (loss === "machine") this.disk.machineDies();
    else this.disk.isLost();
    this.#life.die();
    this.#running.clear();
    this.#options.onDeath(loss);
  }

  /** Starts a server. It may die while it starts. */
  async boot(): Promise<void> {
    this.#life = this.#newLife();
    const life = this.#life;
    this.say("start");
    await this.#ended("start", life, life.begin());
    if (!life.isDead) this.disk.catalogFlushed();
    this.disk.forgetOld();
  }

  /** Ends the server in good order; false when it died over that. */
  async close(): Promise<boolean> {
    await this.settle();
    const life = this.#life;
    if (life.isDead || this.#problem !== undefined) return false;
    this.say("close");
    await this.#ended("close", life, life.close());
    if (life.isDead || this.#problem !== undefined) return false;
    this.disk.catalogFlushed();
    return true;
  }

  async #ended(what: string, life: Life, work: Promise<void>): Promise<void> {
    let isOver = false;
    work.then(
      () => {
        isOver = true;
      },
      (error: unknown) => {
        isOver = true;
        if (!life.isDead) this.fail(what, error);
      },
    );
    await this.until(what, () => isOver || life.isDead);
  }

  /** Lets time pass, a slice at a time; whatever can go on without time does so in between. */
  async wait(ms: number): Promise<void> {
    const life = this.#life;
    const endMs = this.clock.now() + ms;
    while (!life.isDead && this.clock.now() < endMs) {
      this.clock.advance(Math.min(Math.ceil(ms / 8), waitSliceMs, endMs - this.clock.now()));
      await quiet();
    }
  }

  /** Waits until all calls are answered. */
  async settle(): Promise<void> {
    await this.until("calls", () => this.#running.size === 0);
  }

  /** Lets the event loop go round, and time pass when that is what everybody waits for. */
  async until(what: string, look: () => boolean): Promise<void> {
    let stepMs = 1;
    const endMs = this.clock.now() + patienceMs;
    while (!look() && this.#problem === undefined) {
      await quiet(look);
      if (look()) return;
      if (this.clock.now() > endMs) {
        this.fail("stuck", new Violation(`${what}: ${this.running.join("; ")}`));
        return;
      }
      this.clock.advance(stepMs);
      stepMs = Math.min(Math.ceil(stepMs * 1.5), 400);
    }
  }

  /** Gives the dead time to let go of what they hold. */
  async end(): Promise<void> {
    this.#life.die();
    for (let count = 0; count < 20; count++) {
      this.clock.advance(50);
      await quiet();
    }
  }

  #newLife(): Life {
    const { random, profile, between = (store) => store } = this.#options;
    const chances = seededFaults(random.below(2 ** 32), profile.faults);
    const store = new FaultyStore({
      store: new MemoryObjectStore(this.clock, this.bucket),
      clock: this.clock,
      faults: (operation, key): readonly Fault[] => {
        const faults = chances(operation, key);
        if (this.isAway) return [{ kind: "fail_before" }];
        return this.isCalm ? [] : faults;
      },
      onFault: (fault, operation, key) => this.say(`fault ${fault.kind} ${operation} ${key}`),
    });
    return new Life({
      disk: this.disk,
      clock: this.clock,
      random: random.split(),
      profile,
      store: between(store),
      betweenStage: this.#options.betweenStage,
      onReach: (point) => {
        this.reached.add(point);
        if (point === "catalog.flushed") this.disk.catalogFlushed();
        const { armed } = this;
        if (armed?.point !== point || --armed.left > 0) return;
        this.say(`reached ${point}`);
        this.kill(armed.loss);
      },
      onLog: (level, message, facts) => {
        if (level !== "info") this.say(`log ${level} ${message} ${JSON.stringify(facts, jsonValue)}`);
      },
    });
  }
}

/** That many turns of the event loop. */
export async function turns(count: number): Promise<void> {
  for (let done = 0; done < count; done++) await new Promise(setImmediate);
}

/** Turns until nothing goes on without time: all that happens is in memory, so nothing waits but for the next turn. */
async function quiet(look?: () => boolean): Promise<void> {
  for (let count = 0; count < turnCountMax; count++) {
    await turns(1);
    if (!process.getActiveResourcesInfo().includes("Immediate") || look?.() === true) return;
  }
  throw new Violation("somebody takes turns for ever");
}

function textOf(error: unknown): string {
  if (error instanceof Violation) return error.message;
  if (!(error instanceof Error)) return String(error);
  const facts = error instanceof Failure ? `${error.reason} ${JSON.stringify(error.facts)} ` : "";
  const cause = error.cause === undefined ? "" : `\ncaused by ${textOf(error.cause)}`;
  return `${facts}${error.stack ?? error.message}${cause}`;
}

function jsonValue(_key: string, value: unknown): unknown {
  if (value instanceof Error) return `${value.name}: ${value.message}`;
  return typeof value === "bigint" ? String(value) : value;
}
