import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Flusher } from "../../src/engine/flusher.ts";
import { noFailPoints } from "../../src/fail-points.ts";
import { type FileSystem, nodeFileSystem } from "../../src/files/file-system.ts";
import { ManualClock } from "../support/manual-clock.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { testLimits } from "./fixtures.ts";
import { until } from "./support.ts";

const newFolder = temporaryFolders();

/** Files whose flushes wait to be let go, one by one. */
function heldFiles() {
  const held: PromiseWithResolvers<void>[] = [];
  const events: string[] = [];
  const fileSystem: FileSystem = {
    ...nodeFileSystem,
    async flush(descriptor) {
      const hold = Promise.withResolvers<void>();
      held.push(hold);
      await hold.promise;
      await nodeFileSystem.flush(descriptor);
    },
    async flushFolder(path) {
      events.push("folder");
      await nodeFileSystem.flushFolder(path);
    },
    close(descriptor) {
      events.push("close");
      nodeFileSystem.close(descriptor);
    },
  };
  return { fileSystem, held, events };
}

function scene(limits = testLimits) {
  const clock = new ManualClock();
  const files = heldFiles();
  const flusher = new Flusher(files.fileSystem, clock, limits, noFailPoints);
  const wal = () => {
    const path = join(newFolder(), "db.sqlite");
    writeFileSync(`${path}-wal`, "frames");
    return flusher.wal(path, undefined);
  };
  return { ...files, clock, flusher, wal };
}

/** What became of promises so far. */
function outcomes(promises: Promise<void>[]): string[] {
  const seen = promises.map(() => "waiting");
  for (const [index, promise] of promises.entries()) {
    promise.then(
      () => (seen[index] = "flushed"),
      (error: Error) => (seen[index] = error.message),
    );
  }
  return seen;
}

describe("group commit", () => {
  it("shares one flush among all who came before it began, and takes those who came later into the next", async () => {
    const { held, flusher, wal } = scene();
    const file = wal();
    const first = file.flush();
    await until(() => held.length === 1);
    const seen = outcomes([first, file.flush(), file.flush(), file.flush()]);
    held[0]?.resolve();
    await until(() => held.length === 2);
    expect(seen).toEqual(["flushed", "waiting", "waiting", "waiting"]);
    const late = outcomes([file.flush()]);
    held[1]?.resolve();
    await until(() => held.length === 3);
    expect(seen).toEqual(["flushed", "flushed", "flushed", "flushed"]);
    expect(late).toEqual(["waiting"]);
    held[2]?.resolve();
    await until(() => late[0] === "flushed");
    expect(flusher.flushes).toBe(3);
  });

  it("never resolves with a flush that began before the call, in any order of events", async () => {
    const { fileSystem } = scene();
    let began = 0;
    const flusher = new Flusher(
      {
        ...fileSystem,
        async flush() {
          began++;
          for (let turn = 0; turn < began % 4; turn++) await (began % 2 === 0 ? new Promise(setImmediate) : undefined);
        },
      },
      new ManualClock(),
      testLimits,
      noFailPoints,
    );
    const path = join(newFolder(), "db.sqlite");
    writeFileSync(`${path}-wal`, "frames");
    const wal = flusher.wal(path, undefined);
    await Promise.all(
      Array.from({ length: 50 }, async (_, caller) => {
        for (let call = 0; call < 40; call++) {
          const before = began;
          await wal.flush();
          expect(began).toBeGreaterThan(before);
          for (let turn = 0; turn < (caller * 7 + call) % 5; turn++) await undefined;
        }
      }),
    );
    expect(began).toBeLessThan(50 * 40);
  });

  it("is not tried again after a failure", async () => {
    const { held, wal } = scene();
    const file = wal();
    const seen = outcomes([file.flush()]);
    await until(() => held.length === 1);
    seen.push(...outcomes([]));
    const waiting = outcomes([file.flush(), file.flush()]);
    held[0]?.reject(new Error("EIO"));
    await until(() => waiting[1] === "EIO");
    expect([...seen, ...waiting]).toEqual(["EIO", "EIO", "EIO"]);
    await expect(file.flush()).rejects.toThrow("EIO");
    expect(held).toHaveLength(1);
    await file.release();
  });

  it("hurts nobody else when it fails", async () => {
    const { held, wal } = scene({ ...testLimits, flushConcurrencyMax: 1 });
    const [one, other] = [wal(), wal()];
    const seen = outcomes([one.flush(), other.flush()]);
    await until(() => held.length === 1);
    held[0]?.reject(new Error("EIO"));
    await until(() => held.length === 2);
    held[1]?.resolve();
    await until(() => seen[1] === "flushed");
    expect(seen).toEqual(["EIO", "flushed"]);
  });

  it("runs at most so many at one time, one a WAL", async () => {
    const { held, wal } = scene({ ...testLimits, flushConcurrencyMax: 2 });
    const files = [wal(), wal(), wal(), wal()];
    const seen = outcomes(files.flatMap((file) => [file.flush(), file.flush()]));
    for (let let_go = 0; let_go < 4; let_go++) {
      await until(() => held.length > let_go);
      expect(held.length - let_go).toBeLessThanOrEqual(2);
      held[let_go]?.resolve();
    }
    await until(() => seen.every((each) => each === "flushed"));
    expect(held).toHaveLength(4);
  });
});

describe("descriptors", () => {
  async function flushed(held: PromiseWithResolvers<void>[], file: { flush(): Promise<void> }) {
    const before = held.length;
    const done = file.flush();
    await until(() => held.length > before);
    held[before]?.resolve();
    await done;
  }

  it("flush the folder the first time, and are closed when nobody needs them for a while", async () => {
    const { held, events, wal, flusher, clock } = scene();
    const file = wal();
    await flushed(held, file);
    await flushed(held, file);
    expect(events).toEqual(["folder"]);
    clock.advance(testLimits.flushDescriptorIdleMs - 1);
    flusher.tidy();
    expect(flusher.openDescriptors).toBe(1);
    clock.advance(1);
    flusher.tidy();
    expect(flusher.openDescriptors).toBe(0);
    await flushed(held, file);
    expect(events).toEqual(["folder", "close", "folder"]);
  });

  it("are bounded: the one longest unused is closed", async () => {
    const { held, wal, flusher, events } = scene({ ...testLimits, flushDescriptorCountMax: 2 });
    const [a, b, c] = [wal(), wal(), wal()];
    await flushed(held, a);
    await flushed(held, b);
    await flushed(held, a);
    await flushed(held, c);
    expect(flusher.openDescriptors).toBe(2);
    await flushed(held, a);
    expect(events.filter((event) => event === "folder")).toHaveLength(3);
    await flushed(held, b);
    expect(events.filter((event) => event === "folder")).toHaveLength(4);
  });

  it("of a file that was removed are opened again", async () => {
    const { held, flusher, events } = scene();
    const path = join(newFolder(), "db.sqlite");
    writeFileSync(`${path}-wal`, "old");
    const file = flusher.wal(path, undefined);
    await flushed(held, file);
    rmSync(`${path}-wal`);
    writeFileSync(`${path}-wal`, "new");
    await flushed(held, file);
    expect(events).toEqual(["folder", "close", "folder"]);
  });

  it("are let go when the flush that runs is over", async () => {
    const { held, wal, flusher, events } = scene();
    const file = wal();
    const done = file.flush();
    await until(() => held.length === 1);
    const released = file.release();
    expect(events).not.toContain("close");
    held[0]?.resolve();
    await Promise.all([done, released]);
    expect(events).toContain("close");
    expect(flusher.openDescriptors).toBe(0);
  });
});
