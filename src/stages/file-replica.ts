/** A database as a file. What SQLite writes into it has no checksums: its bytes are checked as far as its header goes. */
import { dirname } from "node:path";
import type { Clock } from "../clock.ts";
import type { FileSystem, OpenFile } from "../files/file-system.ts";
import { verifyLtx } from "../ltx/decoder.ts";
import { LtxFailure } from "../ltx/ltx-failure.ts";
import { applyLtx, type ChainState } from "./apply.ts";
import { checkStageCall, turn } from "./calls.ts";
import { readFile } from "./local-bytes.ts";
import { PagedFile } from "./paged-file.ts";
import { readSqliteHeader, type SqliteHeader, sqliteHeaderBytes } from "./sqlite-file.ts";
import type { Batch, Replica, Restored, RestoreInput, Snapshot, StageCall, Verified } from "./stage.ts";

export interface FileReplicaOptions {
  readonly stage: "memory" | "local";
  readonly path: string;
  readonly txid: bigint;
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
}

const copyBytes = 1024 * 1024;

/**
 * Nothing here may run in a process that has the file open in SQLite: closing another descriptor of it drops SQLite's locks.
 * `txid` lives in this object; who keeps it elsewhere writes it down after a change has resolved. Changes may be repeated.
 */
export class FileReplica implements Replica {
  readonly stage: "memory" | "local";
  readonly name: string;
  readonly #fileSystem: FileSystem;
  readonly #clock: Clock;
  #txid: bigint;

  constructor({ stage, path, txid, fileSystem, clock }: FileReplicaOptions) {
    this.stage = stage;
    this.name = path;
    this.#fileSystem = fileSystem;
    this.#clock = clock;
    this.#txid = txid;
  }

  get txid(): bigint {
    return this.#txid;
  }

  /** Bytes of the database file alone; 0 when there is none. */
  get sizeBytes(): number {
    return this.#fileSystem.sizeBytes(this.name);
  }

  async putSnapshot(snapshot: Snapshot, call: StageCall): Promise<void> {
    await this.#replace(async (file) => {
      const paged = new PagedFile(file, snapshot.pageSize, this.#isFlushed);
      await this.#fill(paged, async () => {
        for await (const page of snapshot.pages()) {
          const room = paged.write(page);
          if (room === undefined) continue;
          await room;
          checkStageCall(this.#clock, call);
        }
        await paged.end(snapshot.pageCount);
      });
    });
    this.#txid = snapshot.txid;
  }

  /**
   * In place. When it fails, the file may hold a part of the batch: repeat it, or the batches from the position on that was
   * noted; pages are whole, so nothing is applied twice.
   */
  async append(batch: Batch, call: StageCall): Promise<void> {
    if (batch.txid <= this.#txid) return;
    if (batch.txid !== this.#txid + 1n) throw new Error(`batch ${batch.txid} does not follow on ${this.#txid}`);
    await verifyLtx(this.#read(batch, call), { turn });
    if (batch.txid === 1n) {
      await this.#replace((file) => this.#apply(file, batch, undefined, call));
    } else {
      const file = await this.#fileSystem.openFile(this.name, "write");
      try {
        await this.#apply(file, batch, await this.#state(file), call);
      } finally {
        await file.close();
      }
    }
    this.#txid = batch.txid;
  }

  async restore(input: RestoreInput, call: StageCall): Promise<Restored> {
    const { target, onProgress } = input;
    if (target !== undefined && !("txid" in target && target.txid === this.#txid)) {
      throw new Error("a database file holds one position only");
    }
    const from = await this.#fileSystem.openFile(this.name, "read");
    try {
      const { pageSize, pageCount } = await this.#header(from);
      const bytesTotal = pageSize * pageCount;
      const to = await this.#fileSystem.openFile(input.path, "make");
      try {
        for (let done = 0; done < bytesTotal; ) {
          checkStageCall(this.#clock, call);
          const bytes = await from.read(done, Math.min(copyBytes, bytesTotal - done));
          if (bytes.length === 0) throw this.#corrupt("the file was cut while it was copied");
          await to.write(done, bytes);
          done += bytes.length;
          onProgress?.(done, bytesTotal);
        }
        if (input.flush) await to.flush();
      } finally {
        await to.close();
      }
      const timestampMs = this.#clock.wallMs();
      return { txid: this.#txid, pageSize, pageCount, timestampMs, readBytes: bytesTotal, damaged: [] };
    } finally {
      await from.close();
    }
  }

  /** Whether the file is as long as its header says. Rows are SQLite's to check. */
  async verify(call: StageCall): Promise<Verified> {
    checkStageCall(this.#clock, call);
    const found = { txid: this.#txid, fileCount: 1, byteCount: this.sizeBytes, damaged: [], problems: [] };
    if (found.byteCount === 0) {
      const problems = [`there is no file ${this.name}`];
      return { ...found, txid: 0n, fileCount: 0, isWhole: false, problems };
    }
    const file = await this.#fileSystem.openFile(this.name, "read");
    try {
      await this.#header(file);
      return { ...found, isWhole: true };
    } catch (error) {
      if (!(error instanceof LtxFailure)) throw error;
      return { ...found, isWhole: false, damaged: [{ name: this.name, failure: error }] };
    } finally {
      await file.close();
    }
  }

  async remove(_call: StageCall): Promise<void> {
    for (const ending of ["", "-wal", "-shm", ".new"]) await this.#fileSystem.remove(`${this.name}${ending}`);
    this.#txid = 0n;
  }

  get #isFlushed(): boolean {
    return this.stage === "local";
  }

  /** Puts a new file in the place of the old one, whole. */
  async #replace(make: (file: OpenFile) => Promise<void>): Promise<void> {
    const path = `${this.name}.new`;
    try {
      await this.#fileSystem.makeFolder(dirname(path));
      const file = await this.#fileSystem.openFile(path, "make");
      try {
        await make(file);
      } finally {
        await file.close();
      }
      // A WAL beside it is of another database.
      for (const ending of ["-wal", "-shm"]) await this.#fileSystem.remove(`${this.name}${ending}`);
      await this.#fileSystem.rename(path, this.name);
    } catch (error) {
      await this.#fileSystem.remove(path);
      throw error;
    }
    if (this.#isFlushed) await this.#fileSystem.flushFolder(dirname(this.name));
  }

  async #apply(file: OpenFile, batch: Batch, before: ChainState | undefined, call: StageCall): Promise<void> {
    const paged = new PagedFile(file, batch.pageSize, this.#isFlushed);
    const named = { minTxid: batch.txid, maxTxid: batch.txid };
    await this.#fill(paged, async () => {
      await applyLtx(this.#read(batch, call), named, before, ({ pageSize }) => {
        if (pageSize !== batch.pageSize) throw this.#corrupt(`the batch has pages of ${pageSize} bytes`);
        return paged;
      });
    });
  }

  /** Ends what is under way before the file is closed, whatever happens. */
  async #fill(paged: PagedFile, fill: () => Promise<void>): Promise<void> {
    try {
      await fill();
      await paged.finish();
    } catch (error) {
      await paged.settle();
      throw error;
    }
  }

  #read({ path }: Batch, call: StageCall) {
    return readFile(this.#fileSystem, path, this.#clock, call);
  }

  /** What the file holds before a batch. A batch that was applied in part may have made it longer: then growth is not checked. */
  async #state(file: OpenFile): Promise<ChainState> {
    const header = readSqliteHeader(await file.read(0, sqliteHeaderBytes));
    if (header === undefined) throw this.#corrupt("the file is no database");
    const pageCount = Math.floor((await file.sizeBytes()) / header.pageSize);
    return { maxTxid: this.#txid, pageSize: header.pageSize, pageCount, timestampMs: 0 };
  }

  async #header(file: OpenFile): Promise<SqliteHeader> {
    const header = readSqliteHeader(await file.read(0, sqliteHeaderBytes));
    const sizeBytes = await file.sizeBytes();
    if (header === undefined) throw this.#corrupt("the file is no database");
    const { pageSize } = header;
    const pageCount = header.pageCount === 0 ? Math.floor(sizeBytes / pageSize) : header.pageCount;
    if (sizeBytes < pageSize * pageCount) {
      throw this.#corrupt(`the file has ${sizeBytes} bytes, and ${pageCount} pages of ${pageSize} bytes by its header`);
    }
    return { pageSize, pageCount };
  }

  #corrupt(message: string): LtxFailure {
    return new LtxFailure("incomplete", `${this.name}: ${message}`);
  }
}
