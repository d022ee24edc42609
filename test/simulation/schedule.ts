/** One random life of a server and its databases, step by step, judged by the model after each. */
import { rmSync } from "node:fs";
import { type FailPoint, failPoints } from "../../src/fail-points.ts";
import type { ObjectStore } from "../../src/objects/object-store.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { filesUnder, restorableTxid, strayKeys } from "./bucket.ts";
import { type Loss, Violation } from "./model.ts";
import { type Profile, randomProfile, retention } from "./profile.ts";
import { Random } from "./random.ts";
import { Traffic, trafficWeights } from "./traffic.ts";
import { turns, World } from "./world.ts";

/** A part that is broken on purpose, to see that the judge notices. */
export interface Variant {
  /** Flushes of files answer and do nothing. */
  readonly flushesNothing?: boolean;
  /** Stands between the server and the bucket. */
  readonly between?: (store: ObjectStore) => ObjectStore;
  readonly betweenStage?: (stage: RemoteStage) => RemoteStage;
  /** False: the bucket is not what it should be; only what is on the server's disk must be right. */
  readonly trustsBucket?: boolean;
}

export interface ScheduleOptions {
  readonly seed: number;
  /** A folder that is not there: the schedule makes and removes it. */
  readonly folder: string;
  readonly stepCount?: number | undefined;
  readonly variant?: Variant | undefined;
  /** Told of everything that happens. */
  readonly trace?: ((line: string) => void) | undefined;
}

export interface ScheduleReport {
  readonly seed: number;
  /** What went wrong, or undefined. */
  readonly problem: string | undefined;
  readonly reached: ReadonlySet<FailPoint>;
  /** How often each kind of step was answered. */
  readonly done: ReadonlyMap<string, number>;
  /** The same for the same seed. */
  readonly digest: string;
}

const weights = {
  ...trafficWeights,
  wait: 14,
  restart: 2,
  die: 5,
  arm: 6,
  outage: 3,
  diskFault: 2,
  rival: 0.4,
};

export async function runSchedule(options: ScheduleOptions): Promise<ScheduleReport> {
  const schedule = new Schedule(options);
  try {
    return await schedule.run();
  } finally {
    rmSync(options.folder, { recursive: true, force: true });
  }
}

class Schedule {
  readonly #options: ScheduleOptions;
  readonly #random: Random;
  readonly #profile: Profile;
  readonly #world: World;
  readonly #traffic: Traffic;

  constructor(options: ScheduleOptions) {
    this.#options = options;
    this.#random = new Random(options.seed);
    this.#profile = randomProfile(this.#random.split());
    this.#world = new World({
      folder: options.folder,
      random: this.#random.split(),
      profile: this.#profile,
      between: options.variant?.between,
      betweenStage: options.variant?.betweenStage,
      trace: options.trace,
      onDeath: (loss) => this.#traffic.died(loss),
    });
    this.#traffic = new Traffic(this.#world, this.#random.split(), this.#profile);
    if (options.variant?.flushesNothing === true) this.#world.disk.flushesNothing = true;
  }

  async run(): Promise<ScheduleReport> {
    const { seed, stepCount = 40 } = this.#options;
    const world = this.#world;
    world.say(JSON.stringify(this.#profile));
    try {
      await world.boot();
      for (let step = 0; step < stepCount && world.problem === undefined; step++) await this.#step();
      if (world.problem === undefined) await this.#finish();
    } catch (error) {
      world.fail("judge", error);
    }
    await world.end();
    const { problem, reached, done, digest } = world;
    return { seed, problem, reached, done, digest };
  }

  async #step(): Promise<void> {
    const world = this.#world;
    const kind = this.#random.weighted(weights);
    this.#traffic.endHeld();
    if (kind === "wait") {
      const ms = this.#random.pick([20, 200, 1_000, 6_000, 70_000]);
      world.say(`wait ${ms}`);
      await world.wait(ms);
    } else if (kind === "restart") await this.#restart();
    else if (kind === "die") world.kill(this.#loss());
    else if (kind === "arm") {
      world.armed = { point: this.#random.pick(failPoints), left: 1 + this.#random.below(3), loss: this.#loss() };
      world.say(`arm ${JSON.stringify(world.armed)}`);
    } else if (kind === "outage") {
      world.isAway = !world.isAway;
      world.say(world.isAway ? "the bucket is away" : "the bucket is back");
    } else if (kind === "diskFault") this.#failDisk();
    else if (kind === "rival") {
      if (this.#trustsBucket) await this.#traffic.rival();
    } else this.#traffic.begin(kind);
    if (this.#random.chance(0.55)) await world.settle();
    else await turns(this.#random.below(40));
    while (world.life.isDead && world.problem === undefined) await this.#boot();
    if (this.#trustsBucket) this.#traffic.checkBucket();
  }

  get #trustsBucket(): boolean {
    return this.#profile.placement.persistenceStage === 3 && this.#options.variant?.trustsBucket !== false;
  }

  #loss(): Loss {
    const disk = this.#trustsBucket ? 2 : 0;
    return this.#random.weighted<Loss>({ process: 5, machine: 5, disk });
  }

  async #boot(): Promise<void> {
    this.#world.disk.faults = undefined;
    await this.#world.boot();
    this.#traffic.began();
  }

  async #restart(): Promise<void> {
    this.#traffic.endHeld(true);
    if (!(await this.#world.close())) return;
    this.#traffic.closed();
    await this.#boot();
  }

  /** The next few writes or flushes fail. */
  #failDisk(): void {
    if (!this.#profile.diskFails) return;
    const random = this.#random.split();
    let left = 1 + random.below(4);
    const fault = random.pick(["full", "input_output"] as const);
    this.#traffic.diskFailed = true;
    this.#world.say(`disk ${fault} ${left}`);
    this.#world.disk.faults = {
      next: () => (left > 0 && random.chance(0.5) && left-- > 0 ? fault : undefined),
    };
  }

  /** Everything works again: nothing may be missing, nor left over. */
  async #finish(): Promise<void> {
    const world = this.#world;
    world.armed = undefined;
    world.isAway = false;
    world.isCalm = true;
    this.#traffic.endHeld(true);
    await world.settle();
    // A stopped database gets another chance.
    await this.#restart();
    await this.#readAll();
    if (!this.#trustsBucket || world.problem !== undefined) return;
    this.#traffic.syncAll();
    await world.settle();
    if (world.problem !== undefined) return;
    this.#checkSynced();
    await this.#expireAll();
    if (world.problem !== undefined) return;
    world.kill("disk");
    await this.#boot();
    await this.#readAll();
    await world.close();
  }

  async #readAll(): Promise<void> {
    const world = this.#world;
    this.#traffic.resolveAll();
    await world.settle();
    for (const model of this.#traffic.models) if (model.schema !== undefined) this.#traffic.read(model);
    await world.settle();
  }

  #checkSynced(): void {
    for (const { id, lineage, presence, sequence, hasRival } of this.#traffic.models) {
      if (presence !== "there" || lineage === undefined || hasRival) continue;
      const reached = restorableTxid(filesUnder(this.#world.bucket, `${id}/${lineage}`));
      if (reached < sequence) throw new Violation(`${id}: it is at ${sequence}, the bucket leads to ${reached}`);
    }
  }

  /** Time goes by until everything that retention lets go of must be gone. */
  async #expireAll(): Promise<void> {
    const world = this.#world;
    for (let minutes = 0; minutes < 6; minutes++) await world.wait(retention.snapshotMs);
    const { lostPrefixes } = this.#traffic;
    const strays = strayKeys(world.bucket, world.clock.wallMs()).filter(
      (key) => !lostPrefixes.has(key.split("/").slice(0, 2).join("/")),
    );
    if (strays.length > 0)
      throw new Violation(`nothing leads to ${strays.join(", ")} of ${[...world.bucket.keys()].sort().join(", ")}`);
  }
}
