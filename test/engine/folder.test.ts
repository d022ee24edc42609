import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { Catalog } from "../../src/engine/catalog.ts";
import { type Facts, readFacts, writeFacts } from "../../src/engine/facts.ts";
import { Folder } from "../../src/engine/folder.ts";
import { isDatabaseId, labelViolations } from "../../src/engine/names.ts";
import { HeadFiles } from "../../src/engine/placement/head-files.ts";
import { reconcile } from "../../src/engine/reconcile.ts";
import { noFailPoints } from "../../src/fail-points.ts";
import { type FileSystem, nodeFileSystem } from "../../src/files/file-system.ts";
import type { Executors } from "../../src/sqlite/executor.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testRow } from "./support.ts";

const newFolder = temporaryFolders();
let names = 0;
const randomName = () => `n${names++}`;
const emptyDatabase = (() => {
  const path = join(newFolder(), "empty.sqlite");
  const database = new Database(path);
  database.pragma("journal_mode = WAL");
  database.close();
  return readFileSync(path);
})();

function testFacts(id: string, change: Partial<Facts> = {}): Facts {
  return {
    id,
    lineage: "0123456789abcdef",
    createTimeMs: 5,
    labels: { team: "x" },
    foreignKeys: true,
    etagVersion: 3,
    createRecord: undefined,
    stage: "local",
    head: "local",
    baseTxid: 0,
    remotePrefix: "",
    pin: undefined,
    successor: undefined,
    ...change,
  };
}

/** The machine's files, except that the named operation fails from the given call on. */
function failing(operation: keyof FileSystem, fromCall: number): FileSystem {
  let calls = 0;
  return {
    ...nodeFileSystem,
    [operation]: (...given: never[]) => {
      if (++calls >= fromCall) return Promise.reject(Object.assign(new Error("EIO"), { code: "EIO" }));
      return (nodeFileSystem[operation] as (...given: never[]) => unknown)(...given);
    },
  };
}

describe("ids", () => {
  it.each(["a", "0", "a.b-c_d", "x.db-wal", "a..b", "a".repeat(128)])("may be %s", (id) =>
    expect(isDatabaseId(id)).toBe(true),
  );
  it.each(["", ".", "..", ".a", "a.", "-a", "A", "a/b", "a\\b", "a\0", "a\n", "é", " a", "../a", "a".repeat(129)])(
    "may not be %j",
    (id) => expect(isDatabaseId(id)).toBe(false),
  );
});

describe("labels", () => {
  it("have bounds, each violation with its path", () => {
    const labels = { ok: "😀".repeat(256), Bad: "x", long: "x".repeat(257), nul: "\0", half: "\ud800" };
    expect(labelViolations(labels, 64).map((each) => each.field)).toEqual([
      "labels.Bad",
      "labels.long",
      "labels.nul",
      "labels.half",
    ]);
    const many = Object.fromEntries(Array.from({ length: 65 }, (_, number) => [`k${number}`, ""]));
    expect(labelViolations(many, 64)).toEqual([{ field: "labels", description: "must be at most 64, not 65" }]);
  });
});

describe("facts", () => {
  it("come back as written", async () => {
    const path = join(newFolder(), "database.json");
    const facts = testFacts("a", {
      createRecord: { id: "00", method: "m", hash: "h", labels: {}, foreignKeys: false },
    });
    await writeFacts(nodeFileSystem, path, facts);
    expect(await readFacts(nodeFileSystem, path, "a")).toEqual(facts);
    expect(await readFacts(nodeFileSystem, path, "b")).toBeUndefined();
  });

  it("come back with as many labels as can be allowed, of the longest kind", async () => {
    const path = join(newFolder(), "database.json");
    const keys = Array.from({ length: 1024 }, (_, number) => `k${number}`.padEnd(63, "-"));
    const labels = Object.fromEntries(keys.map((key) => [key, "\u0001".repeat(256)]));
    expect(labelViolations(labels, 1024)).toEqual([]);
    const facts = testFacts("a", {
      labels,
      createRecord: { id: "00", method: "m", hash: "h", labels, foreignKeys: false },
    });
    await writeFacts(nodeFileSystem, path, facts);
    expect(await readFacts(nodeFileSystem, path, "a")).toEqual(facts);
  });

  it.each(["", "{", "[]", "null", '{"version":1}', '{"version":2}', '{"version":1,"id":"a","lineage":"x"}'])(
    "are nothing when the file holds %j",
    async (content) => {
      const path = join(newFolder(), "database.json");
      writeFileSync(path, content);
      expect(await readFacts(nodeFileSystem, path, "a")).toBeUndefined();
    },
  );

  it("stay whole when writing them fails", async () => {
    const path = join(newFolder(), "database.json");
    await writeFacts(nodeFileSystem, path, testFacts("a"));
    await expect(writeFacts(failing("rename", 1), path, testFacts("a", { etagVersion: 9 }))).rejects.toThrow("EIO");
    expect((await readFacts(nodeFileSystem, path, "a"))?.etagVersion).toBe(3);
  });
});

describe("folder", () => {
  it("creates whole or not at all", async () => {
    for (const operation of ["makeFolder", "writeFlushed", "rename", "flushFolder"] as const) {
      for (const call of [1, 2]) {
        const root = newFolder();
        const sound = new Folder(root, nodeFileSystem, randomName);
        await sound.open(() => undefined);
        const folder = new Folder(root, failing(operation, call), randomName);
        const made = await folder.create(testFacts("a"), emptyDatabase).then(
          () => true,
          () => false,
        );
        const ids = await sound.open(() => undefined);
        expect(ids).toEqual(made ? ["a"] : []);
        for (const id of ids) expect((await sound.inspect(id)).facts).toEqual(testFacts("a"));
        expect(readdirSync(join(root, "databases"))).toEqual(ids);
      }
    }
  });

  it("sweeps what an interrupted creation or deletion has left, and nothing else", async () => {
    const root = newFolder();
    const folder = new Folder(root, nodeFileSystem, randomName);
    await folder.open(() => undefined);
    await folder.create(testFacts("a"), emptyDatabase);
    for (const name of [".new-1f", ".deleted-2e", "Strange", ".new-"]) mkdirSync(join(root, "databases", name));
    writeFileSync(join(root, "databases", ".new-1f", "db.sqlite"), "half");
    const strays: string[] = [];
    expect(await folder.open((name) => strays.push(name))).toEqual(["a"]);
    expect(strays.sort()).toEqual([".new-", "Strange"]);
    expect(readdirSync(join(root, "databases")).sort()).toEqual([".new-", "Strange", "a"]);
  });

  it("takes the name away first, then the files", async () => {
    const root = newFolder();
    const folder = new Folder(root, nodeFileSystem, randomName);
    await folder.open(() => undefined);
    await folder.create(testFacts("a"), emptyDatabase);
    const free = await folder.drop("a");
    expect(existsSync(folder.filePath("a"))).toBe(false);
    expect(readdirSync(join(root, "databases"))).toHaveLength(1);
    await free();
    expect(readdirSync(join(root, "databases"))).toEqual([]);
  });

  it("keeps a trace of a deleted database that may have a remote copy, over restarts, until it is removed", async () => {
    const root = newFolder();
    const folder = new Folder(root, nodeFileSystem, randomName);
    await folder.open(() => undefined);
    await folder.create(testFacts("a"), emptyDatabase);
    const trace = await folder.deleteKeepingTrace(testFacts("a"));
    expect(existsSync(folder.filePath("a"))).toBe(false);
    // Killed before the files were freed; and another one, of a database that only the remote stage holds.
    await folder.deleteKeepingTrace(testFacts("b"));
    const after = new Folder(root, nodeFileSystem, randomName);
    expect(await after.open(() => undefined)).toEqual([]);
    expect(after.traces.map(({ facts }) => facts.id).sort()).toEqual(["a", "b"]);
    expect(after.traces.find(({ facts }) => facts.id === "a")?.facts).toEqual(trace.facts);
    const left = readdirSync(join(root, "databases"), { recursive: true }) as string[];
    expect(left.filter((name) => name.includes("db.sqlite"))).toEqual([]);
    for (const each of after.traces) await each.remove();
    expect(readdirSync(join(root, "databases"))).toEqual([]);
  });
});

describe("reconcile", () => {
  async function scene() {
    const root = newFolder();
    const folder = new Folder(root, nodeFileSystem, randomName);
    await folder.open(() => undefined);
    const lines: string[] = [];
    const start = async () => {
      const catalog = Catalog.open(root);
      await reconcile({
        catalog,
        fileSystem: nodeFileSystem,
        folder,
        files: new HeadFiles({
          fileSystem: nodeFileSystem,
          folder,
          executors: undefined as unknown as Executors,
          clock: systemClock,
          failPoints: noFailPoints,
          memoryPath: undefined,
        }),
        log: (_, message, facts) => lines.push(`${facts["database"] ?? ""} ${message}`),
        newLineage: () => "ffffffffffffffff",
        nowMs: 77,
      });
      return catalog;
    };
    return { root, folder, lines, start, path: (id: string, name: string) => join(root, "databases", id, name) };
  }

  it("makes a lost catalog again from the folders", async () => {
    const { root, folder, start } = await scene();
    for (const id of ["a", "b"]) await folder.create(testFacts(id), emptyDatabase);
    const before = await start();
    const rows = [before.get("a"), before.get("b")];
    expect(rows[0]).toMatchObject({ ...testFacts("a"), state: "ready", sequence: 2, sizeBytes: 4096 });
    before.close();
    for (const name of readdirSync(root)) if (name.startsWith("catalog")) rmSync(join(root, name));
    const after = await start();
    expect([after.get("a"), after.get("b")]).toEqual(rows);
    after.close();
  });

  it("repairs both ways after an unclean end", async () => {
    const { folder, start, lines } = await scene();
    await folder.create(testFacts("only-folder"), emptyDatabase);
    await folder.create(testFacts("both", { etagVersion: 4 }), emptyDatabase);
    const first = await start();
    first.delete("only-folder");
    first.put(testRow("only-catalog"));
    first.put(testRow("both", { sequence: 3, lastAccessTimeMs: 9 }));
    first.distrust();
    first.close();
    const second = await start();
    expect(second.ids().sort()).toEqual(["both", "only-folder"]);
    expect(second.get("both")).toMatchObject({ etagVersion: 4, lastAccessTimeMs: 9 });
    expect(lines.filter((line) => line.startsWith("only-catalog"))).toHaveLength(1);
    second.close();
  });

  it("believes the catalog after a clean end, but not about what is there", async () => {
    const { root, folder, start } = await scene();
    for (const id of ["kept", "gone"]) await folder.create(testFacts(id), emptyDatabase);
    const first = await start();
    first.put(testRow("kept", { sequence: 3 }));
    first.close();
    rmSync(join(root, "databases", "gone"), { recursive: true });
    await folder.create(testFacts("new"), emptyDatabase);
    const second = await start();
    expect(second.ids().sort()).toEqual(["kept", "new"]);
    expect(second.get("kept")).toMatchObject({ sequence: 3 });
    second.close();
  });

  it("makes damaged facts again with a new lineage, and says so", async () => {
    const { folder, start, lines, path } = await scene();
    for (const id of ["damaged", "missing"]) await folder.create(testFacts(id), emptyDatabase);
    const first = await start();
    first.distrust();
    first.close();
    writeFileSync(path("damaged", "database.json"), "{");
    rmSync(path("missing", "database.json"));
    const catalog = await start();
    for (const id of ["damaged", "missing"]) {
      expect(catalog.get(id)).toMatchObject({
        lineage: "ffffffffffffffff",
        labels: { team: "x" },
        state: "ready",
      });
      expect(lines.filter((line) => line.startsWith(id))).toHaveLength(1);
    }
    catalog.distrust();
    catalog.close();
    const again = await start();
    expect(again.get("damaged")).toMatchObject({ lineage: "ffffffffffffffff" });
    expect(lines).toHaveLength(2);
    again.close();
  });

  it("stops a database without a file, and keeps its folder", async () => {
    const { folder, start, path } = await scene();
    await folder.create(testFacts("a"), emptyDatabase);
    await folder.create(testFacts("b"), emptyDatabase);
    rmSync(path("a", "db.sqlite"));
    writeFileSync(path("b", "db.sqlite"), "no database");
    const catalog = await start();
    expect(catalog.get("a")?.state).toBe("faulted");
    expect(catalog.get("b")?.state).toBe("faulted");
    expect(existsSync(path("a", "database.json"))).toBe(true);
    catalog.close();
  });
});
