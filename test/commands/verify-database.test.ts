import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { Scratch } from "../../src/commands/scratch.ts";
import { SqliteChecker } from "../../src/commands/sqlite-checks.ts";
import { verifyDatabase } from "../../src/commands/verify-database.ts";
import { nodeFileSystem } from "../../src/files/file-system.ts";
import { openDirectoryStore } from "../../src/objects/directory.ts";
import { FaultyStore } from "../../src/objects/faulty.ts";
import { limits } from "../sqlite/support.ts";
import { makeHistory, openStage } from "../stages/support.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { CommandScene, call, lineage } from "./scene.ts";

const newFolder = temporaryFolders();

it("takes no file for damaged that a running server has merged meanwhile", async () => {
  const scene = new CommandScene(newFolder());
  await scene.publish("app", await makeHistory(newFolder()), 7);
  const store = await openDirectoryStore({ path: scene.remote, clock: systemClock, random: randomBytes });
  let merging: Promise<void> | undefined;
  const merge = async () => {
    const replica = (await openStage(store, scene.folder, { layout: "folder" })).replica(`app/${lineage}`);
    await replica.compact(1, call);
    const merged = replica.files().filter(({ level, maxTxid }) => level === 0 && maxTxid < 7n);
    await store.delete(
      merged.map((file) => replica.key(file)),
      call,
    );
  };
  const watched = new FaultyStore({
    store,
    clock: systemClock,
    faults: (operation, key) => {
      // After the list, while files are being read.
      if (operation === "get" && key.endsWith(".ltx")) merging ??= merge();
      return operation === "get" && key.endsWith(".ltx") ? [{ kind: "delay", ms: 200 }] : [];
    },
  });
  const checker = await SqliteChecker.start({
    limits,
    clock: systemClock,
    random: Math.random,
    signal: new AbortController().signal,
  });
  const scratch = await Scratch.open(scene.local, nodeFileSystem);
  try {
    const report = await verifyDatabase("app", {
      fileSystem: nodeFileSystem,
      clock: systemClock,
      places: { localDirectoryPath: scene.local, memoryDirectoryPath: join(scene.folder, "memory") },
      remote: await openStage(watched, scene.folder, { layout: "folder" }),
      checker,
      scratch,
      isServed: true,
      signal: new AbortController().signal,
    });
    expect(report).toMatchObject({ isGood: true, intact: ["remote"] });
    expect(report?.copies[0]).toMatchObject({ place: "remote", txid: "7", fileCount: 2, problems: [] });
    await merging;
  } finally {
    await checker.close();
    await scratch.close();
    await store.close();
  }
});
