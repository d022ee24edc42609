/** One database's copies on all stages, checked and compared. */

import type { Clock } from "../clock.ts";
import { Image, type ImageEnd } from "../engine/log/image.ts";
import { sealedEnd } from "../engine/log/log-folder.ts";
import { mergeParts, type Part } from "../engine/log/parts.ts";
import { Failure } from "../failure/failure.ts";
import type { FileSystem } from "../files/file-system.ts";
import { verifyLtx } from "../ltx/decoder.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { FileReplica } from "../stages/file-replica.ts";
import { readFile } from "../stages/local-bytes.ts";
import type { Manifest } from "../stages/manifest.ts";
import type { RemoteReplica, RemoteStage } from "../stages/remote.ts";
import type { Batch, StageCall, Verified } from "../stages/stage.ts";
import {
  batchOf,
  findLocalCopies,
  type LocalCopies,
  type LocalPlaces,
  type LogBatch,
  sentenceOf,
} from "./local-copies.ts";
import type { Scratch } from "./scratch.ts";
import type { SqliteChecker } from "./sqlite-checks.ts";
import type { ComparisonReport, CopyReport, DatabaseReport } from "./verify-report.ts";

export interface VerifyContext {
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
  readonly places: LocalPlaces;
  /** Undefined where there is no remote stage. */
  readonly remote: RemoteStage | undefined;
  readonly checker: SqliteChecker;
  readonly scratch: Scratch;
  /** A server works on the local folder: files that it writes are not compared. */
  readonly isServed: boolean;
  readonly signal: AbortSignal;
}

/** Longest that the copies of one database may take. */
const databaseMsMax = 12 * 3_600_000;

const copyBytes = 1024 * 1024;

/** Files do not go on vanishing under a reader. */
const verifyTryCountMax = 3;

/** A file in the scratch folder that holds what a copy makes, up to a batch. */
interface State {
  readonly label: string;
  readonly replica: FileReplica;
}

/** Undefined when no stage knows the database. Rejects with what keeps it from looking, such as a store that is away. */
export async function verifyDatabase(id: string, context: VerifyContext): Promise<DatabaseReport | undefined> {
  const local = await findLocalCopies(context.fileSystem, context.places, id);
  const call = { deadlineAtMs: context.clock.now() + databaseMsMax, signal: context.signal };
  const verification = new Verification(id, context, local, call);
  try {
    return await verification.run();
  } finally {
    await context.scratch.clear();
  }
}

class Verification {
  readonly #id: string;
  readonly #context: VerifyContext;
  readonly #local: LocalCopies | undefined;
  readonly #call: StageCall;
  readonly #copies: CopyReport[] = [];
  readonly #comparisons: ComparisonReport[] = [];
  readonly #intact: string[] = [];
  readonly #problems: string[] = [];
  readonly #notes: string[] = [];

  constructor(id: string, context: VerifyContext, local: LocalCopies | undefined, call: StageCall) {
    this.#id = id;
    this.#context = context;
    this.#local = local;
    this.#call = call;
  }

  async run(): Promise<DatabaseReport | undefined> {
    const manifest = await this.#readManifest();
    if (manifest === undefined && this.#local === undefined && this.#problems.length === 0) return undefined;
    const batches = await this.#checkLog();
    const remote = await this.#checkRemote(manifest);
    if (this.#local === undefined) await this.#checkStates([remote]);
    else if (this.#context.isServed) {
      this.#notes.push("a server works on the folder: what it is writing was not compared with the other copies");
      await this.#checkStates([remote]);
    } else await this.#checkLocal(this.#local, batches, remote);
    const isGood =
      this.#problems.length === 0 &&
      this.#copies.every(({ problems }) => problems.length === 0) &&
      this.#comparisons.every(({ outcome }) => outcome !== "different");
    return {
      database: this.#id,
      lineage: manifest?.lineage ?? this.#local?.facts?.lineage ?? "",
      isGood,
      copies: this.#copies,
      comparisons: this.#comparisons,
      intact: this.#intact,
      problems: this.#problems,
      notes: this.#notes,
    };
  }

  async #readManifest(): Promise<Manifest | undefined> {
    try {
      return (await this.#context.remote?.manifests.read(this.#id, this.#call))?.manifest;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.#problems.push(sentenceOf(error));
      return undefined;
    }
  }

  /** Every file of the log, and that they follow on each other. The batches that are good. */
  async #checkLog(): Promise<readonly LogBatch[]> {
    if (this.#local === undefined) return [];
    const { logPath, batches, parts, hasGap, problems: found } = this.#local;
    const problems = [...found];
    const good: LogBatch[] = [];
    for (const batch of batches) {
      try {
        await verifyLtx(this.#read(batch.path));
        const last = good.at(-1);
        if (last !== undefined && last.txid + 1n !== batch.txid) {
          problems.push(`nothing holds the batches between ${last.txid} and ${batch.txid}`);
        }
        good.push(batch);
      } catch (error) {
        const isReleased = (error as NodeJS.ErrnoException).code === "ENOENT";
        if (isReleased && this.#context.isServed) continue;
        if (!(error instanceof LtxFailure)) throw error;
        problems.push(`${batch.path}: ${sentenceOf(error)}`);
      }
    }
    const open = this.#context.isServed ? undefined : await this.#mergeOpen(parts, problems);
    if (open !== undefined) good.push(open);
    if (hasGap) this.#notes.push("the head holds more than its log: the next file of the log will be a snapshot");
    const files = [...batches, ...parts];
    if (files.length > 0 || problems.length > 0) {
      this.#copies.push({
        place: "log",
        name: logPath,
        txid: String(files.at(-1)?.header.maxTxid ?? 0n),
        fileCount: files.length,
        byteCount: files.reduce((sum, { byteCount }) => sum + byteCount, 0),
        problems,
      });
    }
    return good;
  }

  /** The batch that was open when the server ended, as the file that it would become. */
  async #mergeOpen(parts: readonly Part[], problems: string[]): Promise<LogBatch | undefined> {
    const [first] = parts;
    if (first === undefined) return undefined;
    const { fileSystem, scratch } = this.#context;
    const path = scratch.file("open.ltx");
    try {
      for (const part of parts) await verifyLtx(this.#read(part.path));
      const { header, byteCount } = await mergeParts(fileSystem, parts, path);
      return batchOf({ path, byteCount, header });
    } catch (error) {
      if (!(error instanceof LtxFailure)) throw error;
      problems.push(`${first.path} and what follows: ${sentenceOf(error)}`);
      return undefined;
    }
  }

  /** The remote copy, restored into a scratch file. */
  async #checkRemote(manifest: Manifest | undefined): Promise<State | undefined> {
    const { remote, clock } = this.#context;
    const facts = this.#local?.facts;
    if (remote === undefined) return undefined;
    for (const { prefix, keepUntilMs } of manifest?.retired ?? []) {
      if (keepUntilMs > clock.wallMs()) await this.#checkReplica("retired", remote.replica(prefix));
    }
    if (manifest === undefined) {
      if (facts !== undefined) this.#notes.push("the remote stage does not have it");
      return undefined;
    }
    if (facts !== undefined && facts.lineage !== manifest.lineage) {
      this.#problems.push(`the local folder has lineage ${facts.lineage}, the remote stage ${manifest.lineage}`);
    }
    const replica = remote.replica(manifest.prefix);
    const verified = await this.#checkReplica("remote", replica);
    await this.#context.scratch.needs(2 * Math.max(verified.byteCount, this.#headBytes));
    return this.#restore(replica);
  }

  async #checkReplica(place: "remote" | "retired", replica: RemoteReplica): Promise<Verified> {
    const verified = await this.#verifyStored(replica);
    const problems = verified.damaged.map(({ failure }) => sentenceOf(failure));
    for (const problem of verified.problems) if (!problems.includes(problem)) problems.push(problem);
    const { txid, fileCount, byteCount } = verified;
    this.#copies.push({ place, name: replica.name, txid: String(txid), fileCount, byteCount, problems });
    return verified;
  }

  /** A running server merges and removes files: what is not in the store any more was not damaged. */
  async #verifyStored(replica: RemoteReplica): Promise<Verified> {
    for (let left = verifyTryCountMax; ; left--) {
      const verified = await replica.verify(this.#call);
      if (verified.damaged.length === 0 || left <= 1) return verified;
      await replica.load(this.#call);
      const stored = new Set(replica.files().map((file) => replica.key(file)));
      if (verified.damaged.every(({ name }) => stored.has(name))) return verified;
    }
  }

  async #restore(replica: RemoteReplica): Promise<State | undefined> {
    const path = this.#context.scratch.file("remote.sqlite");
    try {
      const { txid } = await replica.restore({ path, flush: false }, this.#call);
      return { label: "remote", replica: this.#replicaAt(path, txid) };
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.#problems.push(`the remote copy cannot be restored: ${sentenceOf(error)}`);
      return undefined;
    }
  }

  /** All copies brought to one position and compared with the head. */
  async #checkLocal(local: LocalCopies, batches: readonly LogBatch[], remote: State | undefined): Promise<void> {
    const { facts, localPath, memoryPath } = local;
    const isInMemory = facts?.head === "memory";
    const headPath = isInMemory ? memoryPath : localPath;
    const newest = batches.at(-1);
    const baseTxid = BigInt(facts?.baseTxid ?? 0);
    const endTxid = newest === undefined || newest.txid < baseTxid ? baseTxid : newest.txid;
    const states: State[] = [];
    if (remote !== undefined) states.push(remote);
    else if (batches[0]?.txid === 1n) states.push(this.#stateOf("log", 0n));
    if (isInMemory && localPath !== undefined) states.push(await this.#copyBase(localPath, baseTxid));
    if (remote !== undefined && remote.replica.txid > endTxid && headPath !== undefined) {
      this.#problems.push(
        `the remote stage goes on to ${remote.replica.txid}, this folder ends at ${endTxid}: another server has written`,
      );
    }
    for (const state of states) await this.#bringForward(state, batches, endTxid);
    const atEnd = states.filter(({ replica }) => replica.txid === endTxid && endTxid > 0n);
    if (headPath === undefined) {
      for (const other of atEnd.slice(1)) await this.#compareStates(atEnd[0] as State, other);
      if (isInMemory) this.#notes.push("the memory stage is empty: the local file and the log stand for it");
      else if (facts?.head === "local") this.#problems.push("the local folder has no file of the database");
    } else {
      this.#reportFile(isInMemory ? "memory" : "local", headPath, 0n);
      const end: ImageEnd = newest?.txid === endTxid ? sealedEnd(newest.header) : "file";
      if (local.hasGap) this.#notes.push("the head is checked by itself alone");
      else for (const state of atEnd) await this.#compareWithHead(state, headPath, end);
    }
    await this.#checkStates(states);
    if (headPath !== undefined) await this.#checkHead(headPath);
  }

  #reportFile(place: "local" | "memory", name: string, txid: bigint): void {
    const { fileSystem } = this.#context;
    const byteCount = fileSystem.sizeBytes(name) + fileSystem.sizeBytes(`${name}-wal`);
    this.#copies.push({ place, name, txid: String(txid), fileCount: 1, byteCount, problems: [] });
  }

  #stateOf(label: string, txid: bigint): State {
    return { label, replica: this.#replicaAt(this.#context.scratch.file(`${label}.sqlite`), txid) };
  }

  /** What a head in memory is built on, as it is: a batch that it was just taking in may be there in part, and comes again. */
  async #copyBase(path: string, txid: bigint): Promise<State> {
    this.#reportFile("local", path, txid);
    const { fileSystem, scratch } = this.#context;
    await scratch.needs(fileSystem.sizeBytes(path));
    const base = this.#stateOf("base", txid);
    const from = await fileSystem.openFile(path, "read");
    const to = await fileSystem.openFile(base.replica.name, "make");
    try {
      for (let offset = 0; ; offset += copyBytes) {
        this.#call.signal?.throwIfAborted();
        const bytes = await from.read(offset, copyBytes);
        await to.write(offset, bytes);
        if (bytes.length < copyBytes) break;
      }
    } finally {
      await from.close();
      await to.close();
    }
    return base;
  }

  async #bringForward({ label, replica }: State, batches: readonly LogBatch[], endTxid: bigint): Promise<void> {
    for (const batch of batches) {
      if (batch.txid <= replica.txid) continue;
      if (batch.txid !== replica.txid + 1n) {
        this.#problems.push(`nothing leads from ${replica.txid}, where ${label} ends, to ${batch.txid} of the log`);
        return;
      }
      try {
        await replica.append(batch satisfies Batch, this.#call);
      } catch (error) {
        if (!(error instanceof LtxFailure)) throw error;
        this.#problems.push(`${batch.path} does not go on from ${label}: ${sentenceOf(error)}`);
        return;
      }
    }
    if (replica.txid < endTxid) this.#problems.push(`${label} ends at ${replica.txid}, and the head is at ${endTxid}`);
  }

  async #compareWithHead(state: State, headPath: string, end: ImageEnd): Promise<void> {
    const head = await this.#image(headPath, end);
    if (head === undefined) return;
    try {
      if (await this.#hasSamePages(state, head)) {
        this.#compared(state, "head", "bytes", []);
        return;
      }
      const copy = this.#stateOf("head-then", state.replica.txid);
      await this.#putImage(copy, head);
      await this.#compareRows(state, { ...copy, label: "head" });
    } finally {
      await head.close();
    }
  }

  async #compareStates(left: State, right: State): Promise<void> {
    const image = await this.#image(right.replica.name, "file");
    if (image === undefined) return;
    try {
      if (await this.#hasSamePages(left, image)) this.#compared(left, right.label, "bytes", []);
      else await this.#compareRows(left, right);
    } finally {
      await image.close();
    }
  }

  async #compareRows(left: State, right: State): Promise<void> {
    const { checker } = this.#context;
    const [a, b] = [await checker.rowHashes(left.replica.name), await checker.rowHashes(right.replica.name)];
    const differences = [...new Set([...a.keys(), ...b.keys()])].filter((table) => a.get(table) !== b.get(table));
    this.#compared(left, right.label, differences.length === 0 ? "rows" : "different", differences);
  }

  #compared(
    { label, replica }: State,
    right: string,
    outcome: ComparisonReport["outcome"],
    differences: readonly string[],
  ): void {
    this.#comparisons.push({ left: label, right, txid: String(replica.txid), outcome, differences });
  }

  async #hasSamePages({ replica }: State, other: Image): Promise<boolean> {
    const image = await this.#image(replica.name, "file");
    if (image === undefined) return false;
    try {
      if (image.pageSize !== other.pageSize || image.pageCount !== other.pageCount) return false;
      const pages = other.pages();
      for await (const page of image.pages()) {
        const { value } = await pages.next();
        if (value === undefined || value.number !== page.number || Buffer.compare(value.bytes, page.bytes) !== 0) {
          await pages.return();
          return false;
        }
      }
      return true;
    } finally {
      await image.close();
    }
  }

  async #checkStates(states: readonly (State | undefined)[]): Promise<void> {
    for (const state of states) {
      if (state !== undefined && state.replica.txid > 0n) await this.#checkIntegrity(state.label, state.replica.name);
    }
  }

  /** The head as it is now, with what no file of the log holds yet. */
  async #checkHead(path: string): Promise<void> {
    const isKnown = this.#comparisons.some(({ right, outcome }) => right === "head" && outcome === "bytes");
    const head = await this.#image(path, "wal");
    if (head === undefined) return;
    try {
      if (isKnown && head.commits === undefined) {
        this.#intact.push("head");
        return;
      }
      await this.#context.scratch.needs(head.pageSize * head.pageCount);
      const copy = this.#stateOf("head", 1n);
      await this.#putImage(copy, head);
      await this.#checkIntegrity("head", copy.replica.name);
    } finally {
      await head.close();
    }
  }

  async #checkIntegrity(label: string, path: string): Promise<void> {
    try {
      const found = await this.#context.checker.integrityProblems(path);
      if (found.length === 0) this.#intact.push(label);
      else this.#problems.push(...found.map((problem) => `integrity_check of ${label}: ${problem}`));
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.#problems.push(`SQLite cannot read ${label}: ${sentenceOf(error)}`);
    }
  }

  /** Undefined, and a problem, when the file is no database. */
  async #image(path: string, end: ImageEnd): Promise<Image | undefined> {
    try {
      return await Image.open(this.#context.fileSystem, path, end, {});
    } catch (error) {
      if (!(error instanceof LtxFailure)) throw error;
      this.#problems.push(`${path}: ${sentenceOf(error)}`);
      return undefined;
    }
  }

  async #putImage({ replica }: State, image: Image): Promise<void> {
    const { pageSize, pageCount } = image;
    const timestampMs = this.#context.clock.wallMs();
    const pages = () => image.pages();
    await replica.putSnapshot({ txid: replica.txid, pageSize, pageCount, timestampMs, pages }, this.#call);
  }

  #replicaAt(path: string, txid: bigint): FileReplica {
    const { fileSystem, clock } = this.#context;
    // Nothing here has to outlive the machine.
    return new FileReplica({ stage: "memory", path, txid, fileSystem, clock });
  }

  #read(path: string) {
    const { fileSystem, clock } = this.#context;
    return readFile(fileSystem, path, clock, this.#call);
  }

  get #headBytes(): number {
    const path = this.#local?.memoryPath ?? this.#local?.localPath;
    if (path === undefined) return 0;
    const { fileSystem } = this.#context;
    return fileSystem.sizeBytes(path) + fileSystem.sizeBytes(`${path}-wal`);
  }
}
