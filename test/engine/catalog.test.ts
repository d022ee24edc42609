import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";
import { describe, expect, it } from "vitest";
import { Catalog, CatalogVersionError, FolderInUseError } from "../../src/engine/catalog.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testRow } from "./support.ts";

const newFolder = temporaryFolders();

describe("catalog", () => {
  it("keeps rows over a restart, every field of them", () => {
    const folder = newFolder();
    const row = testRow("a", {
      state: "faulted",
      sequence: 2 ** 40,
      sizeBytes: 2 ** 42,
      createTimeMs: 1,
      lastAccessTimeMs: 2,
      labels: { team: 'x"y' },
      etagVersion: 7,
      foreignKeys: false,
      createRecord: { id: "00", method: "CreateDatabase", hash: "h", labels: {}, foreignKeys: true },
    });
    const first = Catalog.open(folder);
    expect(first.wasClean).toBe(false);
    first.put(row);
    first.close();
    const second = Catalog.open(folder);
    expect(second.wasClean).toBe(true);
    expect(second.get("a")).toEqual(row);
    expect([second.count, second.bytes]).toEqual([1, 2 ** 42]);
    second.close();
  });

  it("counts databases and bytes as rows come, change and go", () => {
    const catalog = Catalog.open(newFolder());
    catalog.put(testRow("a", { sizeBytes: 10 }));
    catalog.put(testRow("b", { sizeBytes: 5 }));
    catalog.put(testRow("a", { sizeBytes: 7 }));
    catalog.touch([
      { id: "b", sequence: 1, sizeBytes: 6, lastAccessTimeMs: 1, durableSequence: 0 },
      { id: "gone", sequence: 1, sizeBytes: 100, lastAccessTimeMs: 1, durableSequence: 0 },
    ]);
    expect([catalog.count, catalog.bytes]).toEqual([2, 13]);
    catalog.delete("a");
    catalog.delete("a");
    expect([catalog.count, catalog.bytes]).toEqual([1, 6]);
    catalog.close();
  });

  it("is not clean when it was not closed so", () => {
    const folder = newFolder();
    const first = Catalog.open(folder);
    first.distrust();
    first.close();
    const catalog = Catalog.open(folder);
    expect(catalog.wasClean).toBe(false);
    catalog.close();
  });

  it("locks the folder against another one in this process", () => {
    const folder = newFolder();
    const catalog = Catalog.open(folder);
    expect(() => Catalog.open(folder)).toThrow(FolderInUseError);
    catalog.close();
    Catalog.open(folder).close();
  });

  it("locks the folder against another process, which is told what to do", () => {
    const folder = newFolder();
    const catalog = Catalog.open(folder);
    const program = `
      import { Catalog } from ${JSON.stringify(new URL("../../src/engine/catalog.ts", import.meta.url).href)};
      try { Catalog.open(process.argv[1]); } catch (error) { console.log(error.name + ": " + error.message); }`;
    const other = spawnSync(process.execPath, ["--input-type=module-typescript", "-e", program, folder], {
      encoding: "utf8",
    });
    expect(other.stdout).toContain("FolderInUseError: another server works on the folder");
    expect(other.stdout).toContain("STORAGE_LOCAL_DIRECTORY_PATH");
    catalog.close();
  });

  it("refuses what a newer version has written", () => {
    const folder = newFolder();
    Catalog.open(folder).close();
    const file = new Database(join(folder, "catalog.sqlite"));
    file.pragma("user_version = 99");
    file.close();
    expect(() => Catalog.open(folder)).toThrow(CatalogVersionError);
    expect(() => Catalog.open(folder)).toThrow(/version 99 .* start the newer version/);
  });

  it.each([
    ["no database at all", (bytes: Buffer) => bytes.fill(0x5a)],
    ["a header without pages", (bytes: Buffer) => bytes.fill(0xff, 100)],
    ["a damaged page", (bytes: Buffer) => bytes.fill(0xff, 4096)],
    ["nothing", (bytes: Buffer) => bytes.subarray(0, 0)],
  ])("is made anew when its file holds %s", (_, damage) => {
    const folder = newFolder();
    const first = Catalog.open(folder);
    for (let number = 0; number < 200; number++) first.put(testRow(`d${number}`));
    first.distrust();
    first.close();
    const path = join(folder, "catalog.sqlite");
    writeFileSync(path, damage(readFileSync(path)));
    const catalog = Catalog.open(folder);
    expect(catalog.wasClean).toBe(false);
    expect(catalog.count).toBe(0);
    catalog.put(testRow("a"));
    catalog.close();
  });

  it("is not clean when something could not be written to it", () => {
    const folder = newFolder();
    const first = Catalog.open(folder);
    const broken = testRow("a", { sizeBytes: 1.5 });
    expect(() => first.put(broken)).toThrow();
    first.close();
    const catalog = Catalog.open(folder);
    expect([catalog.wasClean, catalog.count]).toEqual([false, 0]);
    catalog.close();
  });

  it("keeps its secrets, and makes each once", () => {
    const folder = newFolder();
    const first = Catalog.open(folder);
    expect(first.secret("s", () => Buffer.from("one"))).toEqual(Buffer.from("one"));
    first.close();
    const second = Catalog.open(folder);
    expect(second.secret("s", () => Buffer.from("two"))).toEqual(Buffer.from("one"));
    second.close();
  });
});
