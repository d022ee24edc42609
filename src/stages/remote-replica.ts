/** A replica in the object store: see `RemoteReplica`. */
import type { Clock } from "../clock.ts";
import { Failure } from "../failure/failure.ts";
import type { FileSystem } from "../files/file-system.ts";
import type { ByteSource } from "../ltx/byte-reader.ts";
import { compactLtx } from "../ltx/compact.ts";
import { verifyLtx } from "../ltx/decoder.ts";
import { encodeLtx, type LtxFileSummary } from "../ltx/encoder.ts";
import { decodeHeader, headerBytes, type LtxHeader } from "../ltx/header.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { lastTxid, type ReplicaFile, type ReplicaLayout, snapshotLevel } from "../ltx/replica.ts";
import { planRestore } from "../ltx/restore-plan.ts";
import { expiredFiles, planCompaction, type RetentionRules } from "../ltx/retention.ts";
import type { TxidRange } from "../ltx/txid.ts";
import {
  isObjectStoreError,
  type ObjectSource,
  type ObjectStore,
  ObjectStoreError,
  type PutCondition,
  readSource,
  sourceOf,
} from "../objects/object-store.ts";
import { checkHeader } from "./apply.ts";
import { listMsMax, turn, within } from "./calls.ts";
import { applyChain, FileFailure, isOfFile } from "./chain.ts";
import { type FetchBudget, fetchObject, fetchPart } from "./fetch.ts";
import type { FileHints } from "./file-hints.ts";
import { fileSource } from "./local-bytes.ts";
import { noPages } from "./paged-file.ts";
import { FencedError, type RemoteReplica } from "./remote.ts";
import { ReplicaFiles } from "./replica-files.ts";
import { isTime, planFailure, Restoring } from "./restoring.ts";
import type { Spool, Spooled } from "./spool.ts";
import type { Batch, DamagedFile, Restored, RestoreInput, Snapshot, StageCall, Verified } from "./stage.ts";

/** What the replicas of a stage share. */
export interface ReplicaContext {
  readonly store: ObjectStore;
  readonly layout: ReplicaLayout;
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
  readonly random: (byteCount: number) => Uint8Array;
  readonly spool: Spool;
  readonly budget: FetchBudget;
  readonly hints: FileHints;
  readonly retention: RetentionRules;
  readonly compactionFilesMax: number;
}

/** Batches up to this size are put from memory, with a checksum over all of them. */
const memoryBytesMax = 1024 * 1024;
/** Batches up to this size were just written: they are read at once, which costs less than asking others to do it. */
const readNowBytesMax = 64 * 1024;
/** Bytes in memory for the inputs of one merge. */
const mergeBytesMax = 32 * 1024 * 1024;
const mergePartBytesMin = 64 * 1024;
const compareBytes = 4 * 1024 * 1024;
const checkPartBytes = 4 * 1024 * 1024;
/** Files that are checked at one time. */
const checksMax = 8;

export class StoredReplica implements RemoteReplica {
  readonly stage = "remote";
  readonly name: string;
  readonly prefix: string;
  readonly #context: ReplicaContext;
  readonly #files: ReplicaFiles;
  #isLoaded: boolean;
  /** When the newest file was last known to be the newest, by the clock. */
  #knownAtMs: number;

  constructor(context: ReplicaContext, prefix: string, isNew: boolean) {
    this.#context = context;
    this.prefix = prefix;
    this.name = `${context.store.name}: ${prefix}`;
    this.#files = new ReplicaFiles(context.store, prefix, context.layout);
    this.#isLoaded = isNew;
    this.#knownAtMs = context.clock.now();
  }

  get txid(): bigint {
    return this.#files.lastTxid;
  }

  get lastTxid(): bigint {
    return this.#files.lastTxid;
  }

  get isLoaded(): boolean {
    return this.#isLoaded;
  }

  files(): readonly ReplicaFile[] {
    return this.#files.all;
  }

  key(file: TxidRange & { readonly level: number }): string {
    return this.#files.key(file);
  }

  async shape(call: StageCall): Promise<{ readonly pageSize: number; readonly pageCount: number }> {
    await this.#ensureLoaded(call);
    const { pageSize, commit: pageCount } = await this.#newestHeader(call);
    return { pageSize, pageCount };
  }

  async load(call: StageCall): Promise<void> {
    const startMs = this.#context.clock.now();
    await this.#files.load(within(this.#context.clock, call, listMsMax));
    this.#loadedAt(startMs);
  }

  async loadTimes(call: StageCall): Promise<void> {
    await this.#ensureLoaded(call);
    await this.#files.loadTimes(call);
  }

  async append(batch: Batch, call: StageCall): Promise<void> {
    await this.#ensureLoaded(call);
    const { txid, byteCount, timestampMs } = batch;
    const file: ReplicaFile = { level: 0, minTxid: txid, maxTxid: txid, byteCount, createTimeMs: timestampMs };
    if (txid > this.lastTxid + 1n) throw new Error(`batch ${txid} does not follow on ${this.lastTxid}`);
    if (txid <= this.lastTxid && this.#files.get(this.#files.key(file)) === undefined) return;
    const small = byteCount <= readNowBytesMax ? await this.#context.fileSystem.read(batch.path) : undefined;
    if (small?.length === byteCount) {
      await this.#appendFrom(sourceOf(small), file, call);
      return;
    }
    const opened = await this.#context.fileSystem.openFile(batch.path, "read");
    try {
      await this.#appendFrom(fileSource(opened, byteCount), file, call);
    } finally {
      await opened.close();
    }
  }

  async #appendFrom(source: ObjectSource, file: ReplicaFile, call: StageCall): Promise<void> {
    if (file.maxTxid <= this.lastTxid) {
      if (!(await this.#isStored(file, source, call))) throw new FencedError(file.maxTxid);
      return;
    }
    const { sizeBytes } = source;
    const body = sizeBytes <= memoryBytesMax ? await readSource(source, 0, sizeBytes) : source;
    checkHeader(await verifyLtx(body instanceof Uint8Array ? [body] : sourceChunks(source), { turn }), file);
    await this.#claim(file, body, call);
  }

  async putSnapshot(snapshot: Snapshot, call: StageCall): Promise<void> {
    await this.#ensureLoaded(call);
    const { pageSize, pageCount: commit, txid: maxTxid, timestampMs } = snapshot;
    const facts = { pageSize, commit, minTxid: 1n, maxTxid, timestampMs };
    await this.#putMade(snapshotLevel, encodeLtx(facts, snapshot.pages(), { turn }), undefined, call);
  }

  async compact(level: number, call: StageCall): Promise<ReplicaFile | undefined> {
    await this.#ensureLoaded(call);
    try {
      return await this.#compactKnown(level, call);
    } catch (error) {
      if (!isObjectStoreError(error, "not_found")) throw error;
      // Somebody else keeps this replica in order too.
      await this.load(call);
      return this.#compactKnown(level, call);
    }
  }

  async expire(nowMs: number, call: StageCall): Promise<number> {
    await this.#ensureLoaded(call);
    const expired = expiredFiles(this.#files.all, nowMs, this.#context.retention);
    if (expired.length === 0) return 0;
    await this.#context.store.delete(
      expired.map((file) => this.#files.key(file)),
      call,
    );
    this.#files.delete(expired);
    return expired.length;
  }

  async restore(input: RestoreInput, call: StageCall): Promise<Restored> {
    const assumed = this.#isLoaded || isTime(input.target) ? [] : this.#context.hints.get(this.prefix);
    const restoring = new Restoring(this.#context, this.#files, input, call);
    try {
      if (assumed.length > 0) {
        const startMs = this.#context.clock.now();
        const restored = await restoring.runAhead(assumed);
        this.#loadedAt(startMs);
        return restored;
      }
      await this.#ensureLoaded(call);
      if (isTime(input.target)) await this.#files.loadTimes(call);
      return await restoring.run();
    } catch (error) {
      throw error instanceof LtxFailure ? onStage(error) : error;
    }
  }

  async verify(call: StageCall): Promise<Verified> {
    await this.load(call);
    const all = [...this.#files.all];
    const damaged = await this.#damagedOf(all, call);
    const bad = new Set(damaged.map(({ name }) => name));
    const problems: string[] = [];
    const isWhole = await this.#isWhole(
      all.filter((file) => !bad.has(this.#files.key(file))),
      lastTxid(all),
      problems,
      call,
    );
    const byteCount = all.reduce((sum, file) => sum + file.byteCount, 0);
    return { txid: lastTxid(all), fileCount: all.length, byteCount, damaged, isWhole, problems };
  }

  async remove(call: StageCall): Promise<void> {
    const keys = await this.#files.keys(call);
    await this.#context.store.delete(keys, call);
    this.#files.delete([...this.#files.all]);
    this.#isLoaded = true;
    this.#context.hints.delete(this.prefix);
  }

  async claim(nowMs: number, call: StageCall): Promise<bigint> {
    await this.load(call);
    const { pageSize, commit } = await this.#newestHeader(call);
    const txid = this.lastTxid + 1n;
    // Two that claim in the same millisecond must not write the same bytes; and Litestream begins anew where salts differ.
    const salts = Buffer.from(this.#context.random(8));
    const wal = { walOffset: 32, walBytes: 0, walSalt1: salts.readUInt32BE(0), walSalt2: salts.readUInt32BE(4) };
    const facts = { pageSize, commit, minTxid: txid, maxTxid: txid, timestampMs: nowMs, ...wal };
    const { body, summary, discard } = await this.#context.spool.take(encodeLtx(facts, []));
    try {
      const { byteCount } = summary;
      const file: ReplicaFile = { level: 0, minTxid: txid, maxTxid: txid, byteCount, createTimeMs: nowMs };
      await this.#claim(file, body, call);
    } finally {
      await discard();
    }
    return txid;
  }

  #loadedAt(startMs: number): void {
    this.#isLoaded = true;
    this.#knownAtMs = startMs;
    this.#context.hints.set(this.prefix, this.#files);
  }

  async #ensureLoaded(call: StageCall): Promise<void> {
    if (!this.#isLoaded) await this.load(call);
  }

  /** Takes the number for what is put; throws FencedError when it is another's. */
  async #claim(file: ReplicaFile, body: Uint8Array | ObjectSource, call: StageCall): Promise<void> {
    const startMs = this.#context.clock.now();
    try {
      await this.#put(file, body, { ifNoneMatch: "*" }, call);
    } catch (error) {
      if (!isObjectStoreError(error, "precondition")) throw error;
      if (!(await this.#isStored(file, sourceOf(body), call))) throw new FencedError(file.maxTxid, error);
    }
    await this.#confirm(file, startMs, call);
    this.#files.add(file);
    this.#loadedAt(startMs);
  }

  /**
   * The number may have been free because retention has removed it: another server wrote it, went on, and merged it. That
   * takes longer than files of level 0 stay, and its newest one stays in any case; whoever knew the end of the history less
   * long ago need not look. What was stored by mistake would be taken for a part of that history: it is removed. Where no
   * merged file holds the number, the other server has gone on behind what was just stored: its history needs it.
   */
  async #confirm(file: ReplicaFile, nowMs: number, call: StageCall): Promise<void> {
    const knownForMs = nowMs - this.#knownAtMs;
    if (knownForMs < this.#context.retention.levelZeroMs / 2) return;
    const behind = await this.#files.firstBehind(file.maxTxid, call);
    if (behind === undefined) return;
    await this.load(call);
    const { maxTxid: txid } = file;
    const isMerged = this.#files.all.some(
      ({ level, minTxid, maxTxid }) => level > 0 && minTxid <= txid && txid <= maxTxid,
    );
    if (isMerged) await this.#context.store.delete([this.#files.key(file)], call);
    throw new FencedError(txid);
  }

  #put(
    file: ReplicaFile,
    body: Uint8Array | ObjectSource,
    condition: PutCondition | undefined,
    call: StageCall,
  ): Promise<unknown> {
    const timestampMs = file.createTimeMs;
    return this.#context.store.put(this.#files.key(file), body, { ...call, condition, timestampMs });
  }

  /**
   * Whether what is stored under a file's key is this very file. Other bytes say nothing before they are proven: they may
   * have been changed on their way here. Damage is told as such: it is not another server's work.
   */
  async #isStored(file: ReplicaFile, source: ObjectSource, call: StageCall): Promise<boolean> {
    const { store } = this.#context;
    const key = this.#files.key(file);
    const { sizeBytes: byteCount } = await store.head(key, call);
    if (byteCount === source.sizeBytes && (await this.#hasBytes(key, source, call))) return true;
    try {
      const stored = await verifyLtx(fetchObject(store, { key, byteCount }, call, checkPartBytes), { turn });
      const own = await verifyLtx(sourceChunks(source), { turn });
      return byteCount === source.sizeBytes && stored.fileChecksum === own.fileChecksum;
    } catch (error) {
      if (!(error instanceof LtxFailure)) throw error;
      throw new ObjectStoreError("corrupt", `${key} is not what was put there, and no other batch either`, {
        cause: error,
      });
    }
  }

  async #hasBytes(key: string, source: ObjectSource, call: StageCall): Promise<boolean> {
    const { sizeBytes } = source;
    for (let offset = 0; offset < sizeBytes; offset += compareBytes) {
      const byteCount = Math.min(compareBytes, sizeBytes - offset);
      const [stored, own] = await Promise.all([
        fetchPart(this.#context.store, { key, byteCount: sizeBytes }, offset, byteCount, call),
        readSource(source, offset, byteCount),
      ]);
      if (Buffer.compare(stored, own) !== 0) return false;
    }
    return true;
  }

  /** Stores a file that is being made, after it was made whole. */
  async #putMade(
    level: number,
    chunks: AsyncGenerator<Uint8Array, LtxFileSummary, undefined>,
    condition: PutCondition | undefined,
    call: StageCall,
  ): Promise<ReplicaFile> {
    const spooled = await this.#context.spool.take(chunks);
    try {
      const file = fileOf(level, spooled);
      await this.#put(file, spooled.body, condition, call);
      this.#files.add(file);
      return file;
    } finally {
      await spooled.discard();
    }
  }

  async #compactKnown(level: number, call: StageCall): Promise<ReplicaFile | undefined> {
    if (level === snapshotLevel) return this.#merge(level, this.#snapshotInputs(), call);
    const all = this.#files.all;
    const inputs = this.#levelInputs(level, all);
    try {
      return await this.#merge(level, inputs, call);
    } catch (error) {
      // Below a snapshot a level may have a hole: it goes on above it, and what is damaged goes with retention.
      const snapshotTxid = this.#snapshotTxid;
      const above = this.#levelInputs(
        level,
        all.filter(({ maxTxid }) => maxTxid > snapshotTxid),
      );
      const isDamage = error instanceof Failure && error.reason === "DATA_CORRUPT";
      if (!isDamage || above === undefined || above[0] === inputs?.[0]) throw error;
      return this.#merge(level, above, call);
    }
  }

  async #merge(
    level: number,
    inputs: readonly ReplicaFile[] | undefined,
    call: StageCall,
  ): Promise<ReplicaFile | undefined> {
    if (inputs === undefined) return undefined;
    const partBytes = Math.max(mergePartBytesMin, Math.floor(mergeBytesMax / inputs.length));
    const sources = inputs.map((file) => this.#source(file, partBytes, call));
    try {
      return await this.#putMade(level, compactLtx(sources, { turn }), undefined, call);
    } catch (error) {
      if (error instanceof LtxFailure) throw onStage(error);
      if (!isObjectStoreError(error, "corrupt")) throw error;
      throw onStage(new LtxFailure("checksum", error.message, error));
    }
  }

  get #snapshotTxid(): bigint {
    return lastTxid(this.#files.all.filter((file) => file.level === snapshotLevel));
  }

  #levelInputs(level: number, files: readonly ReplicaFile[]): readonly ReplicaFile[] | undefined {
    const filesMax = this.#context.compactionFilesMax;
    return planCompaction(files, level, { aboveTxid: this.#snapshotTxid, filesMax })?.files;
  }

  #snapshotInputs(): readonly ReplicaFile[] | undefined {
    if (this.#files.all.length === 0 || this.#snapshotTxid === this.lastTxid) return undefined;
    const plan = planRestore(this.#files.all);
    if (plan.kind !== "plan") throw planFailure(plan, undefined);
    // A chain that is too long for one merge is shortened step by step.
    return plan.files.slice(0, Math.max(2, this.#context.compactionFilesMax));
  }

  #source(file: ReplicaFile, partBytes: number, call: StageCall): ByteSource {
    const object = { key: this.#files.key(file), byteCount: file.byteCount };
    return fetchObject(this.#context.store, object, call, partBytes);
  }

  async #newestHeader(call: StageCall): Promise<LtxHeader> {
    const last = this.lastTxid;
    const file = this.#files.all.find(({ maxTxid }) => maxTxid === last);
    if (file === undefined) throw onStage(new LtxFailure("chain", `there are no files under ${this.prefix}`));
    const object = { key: this.#files.key(file), byteCount: file.byteCount };
    if (file.byteCount < headerBytes) throw onStage(new LtxFailure("truncated", `${object.key} is too short`));
    const header = decodeHeader(await fetchPart(this.#context.store, object, 0, headerBytes, call));
    checkHeader(header, file);
    return header;
  }

  async #damagedOf(files: readonly ReplicaFile[], call: StageCall): Promise<DamagedFile[]> {
    const damaged: DamagedFile[] = [];
    let next = 0;
    const check = async () => {
      for (let file = files[next++]; file !== undefined; file = files[next++]) {
        const name = this.#files.key(file);
        try {
          await this.#checkFile(file, call);
        } catch (error) {
          if (!isOfFile(error)) throw error;
          damaged.push({ name, failure: new FileFailure(file, error).damage(name) });
        }
      }
    };
    await Promise.all(Array.from({ length: Math.min(checksMax, files.length) }, check));
    return damaged.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async #checkFile(file: ReplicaFile, call: StageCall): Promise<void> {
    const verified = await verifyLtx(this.#source(file, checkPartBytes, call), { turn });
    checkHeader(verified, file);
  }

  /** Whether the good files lead to the newest state; what is in the way is added to the problems. */
  async #isWhole(
    good: readonly ReplicaFile[],
    wantedTxid: bigint,
    problems: string[],
    call: StageCall,
  ): Promise<boolean> {
    if (wantedTxid === 0n) {
      problems.push(`there are no files under ${this.prefix}`);
      return false;
    }
    const plan = planRestore(good);
    if (plan.kind !== "plan") {
      problems.push(sentence(planFailure(plan, undefined)));
      return false;
    }
    if (plan.maxTxid !== wantedTxid) {
      problems.push(`what is good leads to TXID ${plan.maxTxid}, and files go to ${wantedTxid}`);
      return false;
    }
    try {
      const { clock, store, budget } = this.#context;
      await applyChain({ clock, store, budget, files: this.#files, plan: plan.files, open: () => noPages }, call);
      return true;
    } catch (error) {
      if (!(error instanceof FileFailure)) throw error;
      problems.push(sentence(error.damage(this.#files.key(error.file))));
      return false;
    }
  }
}

function fileOf(level: number, { summary }: Spooled): ReplicaFile {
  const { minTxid, maxTxid, timestampMs: createTimeMs } = summary.header;
  return { level, minTxid, maxTxid, createTimeMs, byteCount: summary.byteCount };
}

/** DATA_CORRUPT that says on which stage. */
function onStage(failure: LtxFailure): Failure {
  return new Failure("DATA_CORRUPT", { ...failure.facts, stage: "remote" }, { cause: failure });
}

/** A source as chunks. */
async function* sourceChunks(source: ObjectSource): AsyncGenerator<Uint8Array, void, undefined> {
  for (let offset = 0; offset < source.sizeBytes; offset += memoryBytesMax) {
    yield await source.read(offset, Math.min(memoryBytesMax, source.sizeBytes - offset));
  }
}

function sentence(failure: Failure): string {
  return failure.facts["sqliteMessage"] ?? failure.message;
}
