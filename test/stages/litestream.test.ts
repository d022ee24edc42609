/** Litestream restores what we store, and we restore what it stores. Without its program the tests are skipped, and say so. */
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { txidText } from "../../src/ltx/txid.ts";
import { openDirectoryStore } from "../../src/objects/directory.ts";
import { openS3Store } from "../../src/objects/s3.ts";
import { adoptReplica } from "../../src/stages/adoption.ts";
import type { RemoteStage } from "../../src/stages/remote.ts";
import { call } from "../objects/helpers.ts";
import {
  accessKeyId,
  bucket,
  installed,
  type S3Server,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "../objects/s3-servers.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { litestreamPath, litestreamReplicate, litestreamRestore, type ReplicaPlace } from "./litestream.ts";
import { type History, makeBatch, makeHistory, openStage, restored, startMs } from "./support.ts";

const temporaryFolder = temporaryFolders();
const pageSizes = [512, 4096, 65_536];
const histories = new Map<number, History>();

beforeAll(async () => {
  for (const pageSize of pageSizes) histories.set(pageSize, await makeHistory(temporaryFolder(), { pageSize }));
});

const history = (pageSize: number) => histories.get(pageSize) as History;
const facts = (id: string) => ({
  id,
  lineage: randomBytes(8).toString("hex"),
  createTimeMs: startMs,
  labels: { team: "blue" },
  foreignKeys: true,
  etagVersion: 1,
  createRecord: undefined,
});

interface Place {
  stage: RemoteStage;
  /** Where litestream finds a prefix of the stage. */
  at(prefix: string): ReplicaPlace;
}

/** Everything that has to hold between the two programs, on one kind of store. */
function describeExchange(name: string, place: () => Place): void {
  const restoredBytes = async (prefix: string, ...more: string[]) => {
    const output = join(temporaryFolder(), "restored.db");
    await litestreamRestore(place().at(prefix), output, ...more);
    return readFileSync(output);
  };
  const filled = async (prefix: string, pageSize: number, from = 1) => {
    const replica = place().stage.replica(prefix);
    for (const batch of history(pageSize).batches.slice(from - 1)) await replica.append(batch, call(60_000));
    return replica;
  };
  const state = (pageSize: number, txid: number) => history(pageSize).states[txid - 1] as Buffer;

  it.each(pageSizes)(`restores every state from ${name}, with pages of %d bytes`, async (pageSize) => {
    const prefix = `states-${pageSize}/0123456789abcdef`;
    const replica = place().stage.replica(prefix);
    for (const [index, batch] of history(pageSize).batches.entries()) {
      await replica.append(batch, call(60_000));
      expect((await restoredBytes(prefix)).equals(state(pageSize, index + 1)), `newest at ${batch.txid}`).toBe(true);
    }
    for (const txid of [1, 3, 4, 6]) {
      expect((await restoredBytes(prefix, "-txid", txidText(BigInt(txid)))).equals(state(pageSize, txid))).toBe(true);
      // Strictly before the time that is asked for.
      const timestamp = new Date(startMs + (txid + 1) * 1000).toISOString();
      expect((await restoredBytes(prefix, "-timestamp", timestamp)).equals(state(pageSize, txid)), timestamp).toBe(
        true,
      );
    }
  });

  it.each(pageSizes)(
    `restores from ${name} after compaction and retention, with pages of %d bytes`,
    async (pageSize) => {
      const prefix = `compacted-${pageSize}/0123456789abcdef`;
      const replica = await filled(prefix, pageSize);
      const check = async (what: string) =>
        expect((await restoredBytes(prefix)).equals(state(pageSize, 7)), what).toBe(true);
      for (const level of [1, 2, 3, 9]) {
        await replica.compact(level, call(60_000));
        await check(`level ${level}`);
      }
      expect(await replica.expire(startMs + 3_600_000, call(60_000))).toBe(6);
      await check("retention");
      expect((await restoredBytes(prefix, "-txid", txidText(7n))).equals(state(pageSize, 7))).toBe(true);
    },
  );

  it(`restores from ${name} what begins with a snapshot`, async () => {
    const prefix = "snapshot/0123456789abcdef";
    const replica = place().stage.replica(prefix);
    for (const batch of history(4096).batches.slice(0, 4)) await replica.append(batch, call(60_000));
    await replica.compact(9, call(60_000));
    await filled(prefix, 4096, 5);
    expect((await restoredBytes(prefix)).equals(state(4096, 7))).toBe(true);
  });

  it(`restores from ${name} what was taken over with an empty batch`, async () => {
    const prefix = "claimed/0123456789abcdef";
    const replica = await filled(prefix, 4096);
    expect(await replica.claim(startMs + 60_000, call())).toBe(8n);
    expect((await restoredBytes(prefix)).equals(state(4096, 7))).toBe(true);
    await replica.compact(1, call(60_000));
    expect((await restoredBytes(prefix)).equals(state(4096, 7))).toBe(true);
  });

  it(`has its own replicas in ${name} adopted, and goes on restoring them`, async () => {
    const prefix = "theirs";
    const path = join(temporaryFolder(), "app.db");
    const database = new Database(path);
    database.pragma("journal_mode = wal");
    database.exec("create table people (name text); insert into people values ('Ada'), ('Grace')");
    await litestreamReplicate(place().at(prefix), path);
    database.exec("insert into people values ('Edsger')");
    await litestreamReplicate(place().at(prefix), path, "-force-snapshot");
    database.exec("delete from people where name = 'Ada'");
    await litestreamReplicate(place().at(prefix), path);
    database.close();

    const { stage } = place();
    const adoption = await adoptReplica(
      { to: stage, facts: facts("people"), from: { prefix }, nowMs: systemClock.wallMs() },
      call(60_000),
    );
    if (adoption.kind !== "adopted") throw new Error(adoption.problem);
    expect((await stage.manifests.read("people", call()))?.manifest).toEqual(adoption.manifest);
    expect(adoption.manifest).toMatchObject({ prefix, pageBytes: 4096 });
    const replica = stage.replica(prefix);
    const { txid, bytes } = await restored(replica, temporaryFolder(), call(60_000));
    expect(txid).toBe(adoption.txid);
    expect(namesIn(bytes)).toEqual(["Grace", "Edsger"]);

    const changed = changedBy(bytes, "insert into people values ('Barbara')");
    await replica.append(await makeBatch(temporaryFolder(), txid + 1n, 4096, bytes, changed), call(60_000));
    expect((await restoredBytes(prefix)).equals(changed)).toBe(true);
    expect(namesIn(await restoredBytes(prefix))).toEqual(["Grace", "Edsger", "Barbara"]);
    const again = await adoptReplica(
      { to: stage, facts: facts("people"), from: { prefix }, nowMs: systemClock.wallMs() },
      call(60_000),
    );
    expect(again).toEqual({ kind: "refused", problem: "there is a database people already" });
  });
}

function withDatabase<T>(bytes: Buffer, work: (database: Database.Database) => T): { result: T; bytes: Buffer } {
  const database = new Database(bytes);
  try {
    return { result: work(database), bytes: database.serialize() };
  } finally {
    database.close();
  }
}

/** A database in memory has no WAL: the two bytes that ask for one are put aside meanwhile. */
function withoutWal(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  copy.fill(1, 18, 20);
  return copy;
}

function namesIn(bytes: Buffer): unknown[] {
  return withDatabase(withoutWal(bytes), (database) => database.prepare("select name from people").pluck().all())
    .result;
}

function changedBy(bytes: Buffer, sql: string): Buffer {
  const changed = withDatabase(withoutWal(bytes), (database) => database.exec(sql)).bytes;
  changed.fill(2, 18, 20);
  return changed;
}

const isMissing = litestreamPath === undefined;

describe.skipIf(isMissing)(
  `litestream${isMissing ? " (skipped: it is not installed)" : ""}`,
  () => {
    const folder = temporaryFolder();
    let inFolder: RemoteStage;

    beforeAll(async () => {
      const store = await openDirectoryStore({ path: folder, clock: systemClock, random: randomBytes });
      inFolder = await openStage(store, temporaryFolder(), { layout: "folder" });
    });

    describeExchange("a folder", () => ({ stage: inFolder, at: (prefix) => ({ folder: join(folder, prefix) }) }));

    it("has a replica from elsewhere copied, under the keys of the other layout", async () => {
      const elsewhere = temporaryFolder();
      const path = join(temporaryFolder(), "app.db");
      const database = new Database(path);
      database.pragma("journal_mode = wal");
      database.exec("create table people (name text); insert into people values ('Ada')");
      await litestreamReplicate({ folder: join(elsewhere, "app") }, path);
      database.exec("insert into people values ('Grace')");
      await litestreamReplicate({ folder: join(elsewhere, "app") }, path);
      database.close();
      const store = await openDirectoryStore({ path: elsewhere, clock: systemClock, random: randomBytes });
      const from = { prefix: "app", stage: await openStage(store, temporaryFolder(), { layout: "folder" }) };
      const target = await openDirectoryStore({ path: temporaryFolder(), clock: systemClock, random: randomBytes });
      const to = await openStage(target, temporaryFolder());
      const input = { to, facts: facts("people"), from, nowMs: systemClock.wallMs() };
      const adoption = await adoptReplica(input, call(60_000));
      if (adoption.kind !== "adopted") throw new Error(adoption.problem);
      expect(adoption.manifest.prefix).toBe(`people/${input.facts.lineage}`);
      const { bytes } = await restored(to.replica(adoption.manifest.prefix), temporaryFolder(), call(60_000));
      expect(namesIn(bytes)).toEqual(["Ada", "Grace"]);
      expect(readdirSync(join(elsewhere, "app", "ltx"))).not.toEqual([]);
    });

    // Two of them, made in different ways, are enough here; the contract of object stores runs on all.
    for (const kind of s3ServerKinds.filter(({ program }) => program === "weed" || program === "versitygw")) {
      const isServerMissing = installed(kind) === undefined;
      describe.skipIf(isServerMissing)(
        `${kind.name}${isServerMissing ? " (skipped: it is not installed)" : ""}`,
        () => {
          let server: S3Server;
          let stage: RemoteStage;

          beforeAll(async () => {
            server = await startS3Server(kind, temporaryFolder());
            const { endpoint } = server;
            const store = await openS3Store({
              bucket,
              endpoint,
              region: "auto",
              accessKeyId,
              secretAccessKey,
              clock: systemClock,
              random: randomBytes,
            });
            stage = await openStage(store, temporaryFolder());
          }, 40_000);
          afterAll(async () => {
            await stage?.store.close();
            await server?.stop();
          });

          describeExchange("a bucket", () => ({ stage, at: (prefix) => ({ endpoint: server.endpoint, prefix }) }));
        },
      );
    }
  },
  120_000,
);
