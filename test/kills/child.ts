/**
 * A server under load, to be ended: node child.ts JSON. Each line of its output is JSON; what it has begun comes before what
 * was answered. When the step that it was told is reached it ends itself and its executors as told:
 *
 * - `process`: SIGKILL, at once.
 * - `machine`: the files are made what a disk may hold when the power goes (test/simulation/disk.ts), then the same.
 * - `executor`: SIGKILL of one of its executors; it goes on and ends by itself.
 */
import { readdirSync, readFileSync, writeSync } from "node:fs";
import type { DurabilityLevel, EngineAnswer, StageName } from "../../src/engine/engine.ts";
import type { FailPoint } from "../../src/fail-points.ts";
import { Failure } from "../../src/failure/failure.ts";
import type { ObjectStorePlace } from "../../src/objects/open-object-store.ts";
import { SimulatedDisk } from "../simulation/disk.ts";
import { mortalExecutors } from "../simulation/life.ts";
import { Random } from "../simulation/random.ts";
import { numbersOf, readEverything, schemaBatch, writeOf } from "../simulation/schema.ts";
import { callOptions, openServer } from "./server.ts";

export interface ChildOptions {
  /** An empty folder. */
  readonly folder: string;
  readonly place: ObjectStorePlace;
  readonly seed: number;
  readonly loss: "process" | "machine" | "executor";
  /** Any step when left out. */
  readonly point?: FailPoint;
  /** How many times it is to be reached. */
  readonly times: number;
}

const { folder, place, seed, loss, point, times } = JSON.parse(process.argv[2] ?? "") as ChildOptions;
const roundCountMax = 40;
const random = new Random(seed);
const disk = new SimulatedDisk(folder, random.split());
let left = times;
let lastTag = seed * 100_000;
let isOver = false;

/** At once and whole: what was written before a kill is read. */
function tell(line: Readonly<Record<string, unknown>>): void {
  const text = JSON.stringify(line, (_key, value: unknown) => (typeof value === "bigint" ? String(value) : value));
  writeSync(1, `${text}\n`);
}

function reach(reached: FailPoint): void {
  if (point !== undefined && reached !== point) return;
  if (--left !== 0) return;
  tell({ reached });
  if (loss === "executor") {
    killOneExecutor();
    return;
  }
  if (loss === "machine") disk.machineDies();
  process.kill(process.pid, "SIGKILL");
  // The signal comes at the next moment at which the kernel looks.
  for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_000);
}

function killOneExecutor(): void {
  const children = readdirSync("/proc/self/task").flatMap((task) =>
    readFileSync(`/proc/self/task/${task}/children`, "utf8").split(" ").filter(Boolean),
  );
  process.kill(Number(random.pick(children)), "SIGKILL");
}

const { engine, remote, close } = await openServer({
  localPath: disk.localPath,
  memoryPath: disk.memoryPath,
  place,
  fileSystem: disk.mount(() => false),
  failPoints: { reach },
  hasProcesses: true,
  between: (executors) => mortalExecutors(executors, disk, () => false),
  log: (line) => tell({ log: line }),
});
disk.catalogFlushed();

/** Runs a call; failures are told, and what only a defect can say ends the child. */
async function attempt(what: Readonly<Record<string, unknown>>, run: () => Promise<unknown>): Promise<boolean> {
  tell({ ...what, begins: true });
  try {
    const answer = await run();
    tell({ ...what, ...(answer as object | undefined) });
    return true;
  } catch (error) {
    const reason = error instanceof Failure ? error.reason : String(error);
    tell({ ...what, failed: reason });
    return false;
  }
}

async function create(id: string, initialStage: StageName): Promise<void> {
  const isMade = await attempt({ create: id }, async () => {
    const { position } = await engine.createDatabase({
      id,
      labels: {},
      initialStage,
      foreignKeys: true,
      allowExisting: false,
      request: undefined,
    });
    return { lineage: position.lineage };
  });
  if (isMade)
    await attempt({ schema: id }, async () => {
      const answer = await engine.batch(id, schemaBatch, "local", callOptions(), undefined);
      return answered(answer);
    });
}

function answered({ position, durablePosition }: Pick<EngineAnswer, "position" | "durablePosition">) {
  return { sequence: position.sequence, lineage: position.lineage, durable: durablePosition?.sequence };
}

async function write(id: string, level: DurabilityLevel): Promise<void> {
  const tag = ++lastTag;
  await attempt({ write: id, tag, level }, async () => {
    const answer = await engine.execute(id, writeOf(tag), level, callOptions(), undefined);
    return { ...answered(answer), n: numbersOf(answer.body)[0]?.[0] };
  });
}

const wait = { waitMs: 5_000, cancel: undefined };

async function operate(what: Readonly<Record<string, unknown>>, run: () => Promise<{ error: Failure | undefined }>) {
  await attempt(what, async () => {
    const { error } = await run();
    if (error !== undefined) throw error;
    return undefined;
  });
}

async function writer(id: string): Promise<void> {
  for (let round = 0; round < roundCountMax * 3 && !isOver; round++)
    await write(id, random.pick(["committed", "local", "local", "remote"] as const));
}

/** Moves a database around while others write to it. */
async function mover(id: string, stages: readonly StageName[]): Promise<void> {
  for (let round = 0; round < roundCountMax && !isOver; round++) {
    const target = stages[round % stages.length] ?? "local";
    const { stage } = await engine.getDatabaseStage(id);
    const order = ["memory", "local", "remote"];
    if (stage === target) continue;
    const verb = order.indexOf(target) < order.indexOf(stage) ? "promote" : "demote";
    await operate({ move: id, target }, () => engine[verb]({ id, target, wait }));
    await write(id, "committed");
  }
}

/** Databases that come and go: whether they are there is not judged, only that what is there is whole. */
async function churner(): Promise<void> {
  for (let round = 0; round < roundCountMax && !isOver; round++) {
    const id = `x${round}`;
    await create(id, "local");
    for (let count = 0; count < 3; count++) await write(id, "remote");
    const { position } = await engine.getDatabase(id);
    await write(id, "local");
    tell({ abandon: id });
    await operate({ restore: id }, () =>
      engine.restore({ id, target: { position }, etag: undefined, request: undefined, wait }),
    );
    const newId = `y${round}`;
    tell({ abandon: newId });
    await operate({ fork: newId }, () => engine.fork({ id, newId, source: undefined, request: undefined, wait }));
    await attempt({ label: id }, () =>
      engine.updateDatabase({ id, etag: undefined, labels: { round: String(round) }, foreignKeys: undefined }),
    );
    await attempt({ delete: id }, () => engine.deleteDatabase(id, undefined, true));
    await attempt({ delete: newId }, () => engine.deleteDatabase(newId, undefined, true));
  }
}

/** Another server takes a database over. */
async function rival(): Promise<void> {
  await create("f", "local");
  await write("f", "remote");
  const { lineage } = engine.position("f");
  tell({ abandon: "f" });
  await remote.replica(remote.prefixOf("f", lineage)).claim(Date.now(), { deadlineAtMs: callOptions().deadlineAtMs });
  await write("f", "remote");
}

tell({ ready: true });
await attempt({ read: "old" }, () => engine.read("old", readEverything, undefined, callOptions()));
await Promise.all([create("m", "memory"), create("l", "local"), create("r", "remote"), create("v", "local")]);
await Promise.all([
  writer("m"),
  writer("l"),
  writer("r"),
  mover("v", ["memory", "local", "remote"]),
  mover("r", ["local", "remote"]),
  churner(),
  rival(),
]);
isOver = true;
await close();
tell({ done: true });
