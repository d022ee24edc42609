import { copyFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { beforeAll, describe, expect, it } from "vitest";
import type { DatabaseReport } from "../../src/commands/verify-report.ts";
import { type History, makeHistory } from "../stages/support.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { CommandScene, lineage } from "./scene.ts";

const newFolder = temporaryFolders();
let history: History;
const newest = () => history.states.at(-1) as Buffer;
const logFrom = (txid: number) => ({ batches: history.batches.slice(txid - 1) });

beforeAll(async () => {
  history = await makeHistory(newFolder());
});

/** Everything that is wrong with a database, in one list. */
function problemsOf({ problems, copies }: DatabaseReport): string[] {
  return [...problems, ...copies.flatMap(({ problems: ofCopy }) => ofCopy)];
}

/** A database whose remote copy ends at 4 and whose log goes on to 7, where the head is. */
async function healthy(): Promise<CommandScene> {
  const scene = new CommandScene(newFolder());
  await scene.publish("app", history, 4);
  scene.place("app", newest(), logFrom(5));
  return scene;
}

async function verifyOne(scene: CommandScene): Promise<DatabaseReport & { readonly code: number }> {
  const { code, databases } = await scene.verify("app");
  expect(databases).toHaveLength(1);
  // Nothing of the work is left.
  expect(readdirSync(scene.local).filter((name) => name.startsWith("scratch"))).toEqual([]);
  return { code, ...(databases[0] as DatabaseReport) };
}

describe("verify", () => {
  it("finds the remote copy and the log to lead to the head, byte for byte", async () => {
    const scene = await healthy();
    const report = await verifyOne(scene);
    expect(report).toMatchObject({ code: 0, database: "app", lineage, isGood: true, problems: [], notes: [] });
    expect(report.copies.map(({ place, txid, fileCount }) => [place, txid, fileCount])).toEqual([
      ["log", "7", 3],
      ["remote", "4", 4],
      ["local", "0", 1],
    ]);
    expect(report.comparisons).toEqual([
      { left: "remote", right: "head", txid: "7", outcome: "bytes", differences: [] },
    ]);
    expect(report.intact).toEqual(["remote", "head"]);
  });

  it("says so to people", async () => {
    const { code, printed } = await (await healthy()).run("verify");
    expect(code).toBe(0);
    expect(printed).toContain("ok   app\n");
    expect(printed).toContain("remote and head at 7: the same, byte for byte");
    expect(printed).toContain("1 databases verified, 0 with problems");
  });

  it("compares at the sealed position, and checks commits that only the WAL has", async () => {
    const scene = new CommandScene(newFolder());
    await scene.publish("app", history, 7);
    const path = scene.place("app", newest(), logFrom(7));
    const aside = join(scene.folder, "aside.sqlite");
    copyFileSync(path, aside);
    const database = new Database(aside);
    database.pragma("wal_autocheckpoint = 0");
    database.exec("insert into notes (body) values ('in no file of the log')");
    copyFileSync(`${aside}-wal`, `${path}-wal`);
    database.close();
    const report = await verifyOne(scene);
    expect(report).toMatchObject({ code: 0, isGood: true });
    expect(report.comparisons[0]).toMatchObject({ txid: "7", outcome: "bytes" });
    expect(report.intact).toEqual(["remote", "head"]);
  });

  it("takes the parts of the batch that was open for the file that they become", async () => {
    const scene = new CommandScene(newFolder());
    await scene.publish("app", history, 5);
    scene.place("app", newest(), { batches: history.batches.slice(5, 6) });
    const [last] = logFrom(7).batches;
    const part = join(scene.local, "databases", "app", "log", `${"7".padStart(16, "0")}.00000000.part`);
    copyFileSync(last?.path ?? "", part);
    const report = await verifyOne(scene);
    expect(report).toMatchObject({ code: 0, isGood: true });
    expect(report.copies[0]).toMatchObject({ place: "log", txid: "7", fileCount: 2 });
    expect(report.comparisons[0]).toMatchObject({ txid: "7", outcome: "bytes" });
    scene.damage(part);
    const damaged = await verifyOne(scene);
    expect(damaged.code).toBe(1);
    expect(problemsOf(damaged).join("\n")).toContain(".part");
  });

  it("names a damaged file of the remote stage", async () => {
    const scene = await healthy();
    const file = scene.remoteFiles()[1] as string;
    scene.damage(join(scene.remote, file));
    const report = await verifyOne(scene);
    expect(report.code).toBe(1);
    expect(problemsOf(report).join("\n")).toContain(file);
  });

  it("finds a hole in the chain of the remote stage", async () => {
    const scene = await healthy();
    rmSync(join(scene.remote, scene.remoteFiles()[2] as string));
    const report = await verifyOne(scene);
    expect(report.code).toBe(1);
    expect(problemsOf(report).join("\n")).toMatch(/3/);
    // The head alone is whole.
    expect(report.intact).toContain("head");
  });

  it("names a damaged file of the log, and a log that does not go on from the remote copy", async () => {
    const scene = await healthy();
    const log = join(scene.local, "databases", "app", "log");
    const names = readdirSync(log).sort();
    scene.damage(join(log, names[1] as string));
    const damaged = await verifyOne(scene);
    expect(damaged.code).toBe(1);
    expect(problemsOf(damaged).join("\n")).toContain(names[1]);

    rmSync(join(log, names[0] as string));
    rmSync(join(log, names[1] as string));
    const gone = await verifyOne(scene);
    expect(problemsOf(gone)).toContain("nothing leads from 4, where remote ends, to 7 of the log");
  });

  it("names the tables whose rows differ from what the log leads to", async () => {
    const scene = await healthy();
    const path = join(scene.local, "databases", "app", "db.sqlite");
    const database = new Database(path);
    database.exec("update notes set body = 'not what was logged' where id = (select min(id) from notes)");
    database.pragma("wal_checkpoint(truncate)");
    database.close();
    const report = await verifyOne(scene);
    expect(report).toMatchObject({ code: 1, isGood: false });
    expect(report.comparisons).toEqual([
      { left: "remote", right: "head", txid: "7", outcome: "different", differences: ["notes"] },
    ]);
  });

  it("tells pages that differ from rows that differ", async () => {
    const scene = new CommandScene(newFolder());
    await scene.publish("app", history, 7);
    const state = Buffer.from(newest());
    // The application's own number in the header: no row.
    state.writeUInt32BE(4711, 68);
    scene.place("app", state, logFrom(7));
    const report = await verifyOne(scene);
    expect(report.code).toBe(0);
    expect(report.comparisons[0]?.outcome).toBe("rows");
  });

  it("checks what only the bucket has, and what only the local folder has", async () => {
    const scene = new CommandScene(newFolder());
    await scene.publish("far", history, 7);
    scene.place("near", newest(), { batches: [] });
    const { code, databases } = await scene.verify();
    expect(code).toBe(0);
    expect(databases.map(({ database, intact }) => [database, intact])).toEqual([
      ["far", ["remote"]],
      ["near", ["head"]],
    ]);
    expect(databases[1]?.notes).toEqual(["the remote stage does not have it"]);
    rmSync(scene.local, { recursive: true });
    expect((await scene.verify()).databases.map(({ database }) => database)).toEqual(["far"]);
  });

  it("finds what integrity_check finds", async () => {
    const scene = new CommandScene(newFolder());
    const state = Buffer.from(newest());
    // A page in the middle of a table.
    state.fill(0x5a, 4096 * 3 + 8, 4096 * 4);
    scene.place("app", state, { batches: [] });
    const report = await verifyOne(scene);
    expect(report.code).toBe(1);
    expect(report.problems.join("\n")).toMatch(/head/);
  });

  it("brings what a head in memory is built on forward, and compares it too", async () => {
    const scene = new CommandScene(newFolder());
    await scene.publish("app", history, 4);
    scene.place("app", history.states[2] as Buffer, logFrom(4), { head: "memory", stage: "memory", baseTxid: 3 });
    const path = scene.placeInMemory("app", newest());
    const report = await verifyOne(scene);
    expect(report).toMatchObject({ code: 0, isGood: true });
    expect(report.comparisons.map(({ left, right, outcome }) => [left, right, outcome])).toEqual([
      ["remote", "head", "bytes"],
      ["base", "head", "bytes"],
    ]);
    // The base was taking the next batch in when the server ended.
    const local = join(scene.local, "databases", "app", "db.sqlite");
    const next = history.states[3] as Buffer;
    writeFileSync(local, Buffer.concat([next.subarray(0, 4096), (history.states[2] as Buffer).subarray(4096)]));
    expect((await verifyOne(scene)).isGood).toBe(true);
    // The machine has ended: the rest leads to the same state.
    rmSync(path);
    const without = await verifyOne(scene);
    expect(without.isGood).toBe(true);
    expect(without.comparisons).toEqual([
      { left: "remote", right: "base", txid: "7", outcome: "bytes", differences: [] },
    ]);
    expect(without.intact).toEqual(["remote", "base"]);
  });

  it("finds that another server has written, and that histories are not the same", async () => {
    const scene = new CommandScene(newFolder());
    await scene.publish("app", history, 7);
    scene.place("app", history.states[4] as Buffer, { batches: history.batches.slice(4, 5) });
    expect((await verifyOne(scene)).problems).toContain(
      "the remote stage goes on to 7, this folder ends at 5: another server has written",
    );
    scene.place("app", newest(), logFrom(7), { lineage: "ffffffffffffffff" });
    expect((await verifyOne(scene)).problems.join("\n")).toContain("has lineage ffffffffffffffff");
  });

  it("leaves the files of a running server alone", async () => {
    const scene = await healthy();
    const catalog = new Database(join(scene.local, "catalog.sqlite"));
    catalog.exec("CREATE TABLE t (a)");
    catalog.pragma("locking_mode = EXCLUSIVE");
    catalog.exec("BEGIN EXCLUSIVE");
    try {
      const report = await verifyOne(scene);
      expect(report).toMatchObject({ code: 0, comparisons: [], intact: ["remote"] });
      expect(report.notes.join()).toContain("a server works on the folder");
    } finally {
      catalog.close();
    }
    // Nor does it hold the folder once it has ended.
    expect(new Database(join(scene.local, "catalog.sqlite")).prepare("SELECT count(*) FROM t").pluck().get()).toBe(0);
  });

  it("ends with 2 when it is called wrongly or knows no such database", async () => {
    const scene = await healthy();
    for (const args of [["nobody"], ["Not An Id"], ["app", "more"], ["--frob"]]) {
      const { code, complaints, printed } = await scene.run("verify", ...args);
      expect([code, printed, complaints === ""]).toEqual([2, "", false]);
    }
    expect((await scene.run("frob")).code).toBe(2);
    expect((await scene.run("help")).code).toBe(0);
  });
});
