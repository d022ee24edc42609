/** A disk that has no room for the log of one database: that one refuses writes at last, and loses nothing. */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { expect, it } from "vitest";
import { systemClock } from "../../../src/clock.ts";
import { type FileSystem, nodeFileSystem } from "../../../src/files/file-system.ts";
import { openRemoteStage } from "../../../src/stages/open-remote-stage.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { openScene } from "../scene.ts";
import { failureOf, until } from "../support.ts";
import { testSyncLimits } from "../sync/scene.ts";

const newFolder = temporaryFolders();

it("refuses writes of a database whose log finds no room, while others go on, and goes on itself when there is some", async () => {
  const folder = newFolder();
  let isFull = false;
  const fileSystem: FileSystem = {
    ...nodeFileSystem,
    async openFile(path, mode) {
      if (isFull && mode === "make" && path.includes("/databases/a/log/")) {
        throw Object.assign(new Error("ENOSPC"), { code: "ENOSPC" });
      }
      return nodeFileSystem.openFile(path, mode);
    },
  };
  const remote = await openRemoteStage({
    store: new MemoryObjectStore(systemClock, new Map()),
    layout: "bucket",
    displayName: "remote",
    fileSystem: nodeFileSystem,
    spoolDirectoryPath: join(folder, "spool"),
    clock: systemClock,
    random: randomBytes,
  });
  const limits = { ...testSyncLimits, intervalMs: 50, unsyncedBytesMax: 2 ** 30, backOff: { startMs: 10, maxMs: 50 } };
  const scene = await openScene({
    directoryPath: join(folder, "local"),
    fileSystem,
    limits: { checkpointFrames: 20, checkpointPauseFrames: 40 },
    stages: { remote, sync: { isAutomatic: true, closeGraceMs: 5_000, limits } },
  });
  for (const id of ["a", "b"]) {
    await scene.create(id);
    await scene.run(id, "CREATE TABLE t (x)");
  }
  isFull = true;
  let written = 0;
  let refusal: unknown;
  for (; written < 2_000 && refusal === undefined; ) {
    await scene.run("a", "INSERT INTO t VALUES (randomblob(3000))").then(
      () => written++,
      (error: unknown) => {
        refusal = error;
      },
    );
  }
  expect(refusal).toMatchObject({ reason: "STAGE_FULL", facts: { stage: "local" } });
  expect(written).toBeGreaterThan(10);
  expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[written]]);
  for (let write = 0; write < 50; write++) await scene.run("b", "INSERT INTO t VALUES (randomblob(3000))", "local");
  await failureOf(scene.run("a", "INSERT INTO t VALUES (1)"), "STAGE_FULL");
  isFull = false;
  let isWritten = false;
  await until(() => {
    scene.run("a", "INSERT INTO t VALUES (1)").then(
      () => (isWritten = true),
      () => undefined,
    );
    return isWritten;
  });
  expect((await scene.engine.getDatabase("a")).state).toBe("ready");
  const { position } = await scene.run("a", "INSERT INTO t VALUES (2)", "remote");
  expect((await scene.engine.getDatabase("a")).durablePosition?.sequence).toBeGreaterThanOrEqual(position.sequence);
  await scene.close();
});
