import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { type DirectoryStoreOptions, openDirectoryStore } from "../../src/objects/directory.ts";
import { FaultyStore } from "../../src/objects/faulty.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { until } from "../support/until.ts";
import { describeObjectStore } from "./contract.ts";
import { bytesOf, call, failing, keysOf } from "./helpers.ts";

const temporaryFolder = temporaryFolders();
const open = (path: string, options: Partial<DirectoryStoreOptions> = {}) =>
  openDirectoryStore({ path, clock: systemClock, random: randomBytes, ...options });

const directory = temporaryFolder();
describeObjectStore("directory", { open: () => open(directory) });

const wrapped = temporaryFolder();
describeObjectStore("a faulty store without faults", {
  open: async () => new FaultyStore({ store: await open(wrapped), clock: systemClock, faults: () => [] }),
});

/** Programs that a test leaves behind are ended with it. */
function startProcess(mode: string, path: string): ChildProcess {
  const program = resolve(import.meta.dirname, "directory-process.ts");
  return spawn(process.execPath, [program, mode, path], { stdio: ["ignore", "pipe", "inherit"], timeout: 20_000 });
}

describe("an object store in a folder", () => {
  it("has plain files, for other tools to read", async () => {
    const path = temporaryFolder();
    const store = await open(path);
    const timestampMs = Date.UTC(2024, 1, 2) + 345;
    await store.put("db/ltx/0/0000000000000001.ltx", bytesOf(5000), { ...call(), timestampMs });
    const file = join(path, "db/ltx/0/0000000000000001.ltx");
    expect(bytesOf(5000).equals(readFileSync(file))).toBe(true);
    expect(Math.floor(statSync(file).mtimeMs)).toBe(timestampMs);
    await store.close();
  });

  it("reads what other tools have put there", async () => {
    const path = temporaryFolder();
    mkdirSync(join(path, "db/ltx/0"), { recursive: true });
    writeFileSync(join(path, "db/ltx/0/a.ltx"), bytesOf(100));
    utimesSync(join(path, "db/ltx/0/a.ltx"), 1_700_000_000.5, 1_700_000_000.5);
    const store = await open(path);
    const { info, bytes } = await store.get("db/ltx/0/a.ltx", { ...call(), bytesMax: 100 });
    expect([info.timestampMs, bytesOf(100).equals(bytes)]).toEqual([1_700_000_000_500, true]);
    await store.put("db/ltx/0/a.ltx", bytesOf(1), { ...call(), condition: { ifMatch: info.etag } });
    await store.close();
  });

  it("follows no links, and shows nothing of its own", async () => {
    const path = temporaryFolder();
    const outside = temporaryFolder();
    writeFileSync(join(outside, "secret"), "secret");
    const store = await open(path);
    await store.put("a", bytesOf(1), call());
    symlinkSync(join(outside, "secret"), join(path, "link"));
    expect(await failing(store.get("link", { ...call(), bytesMax: 10 }))).toBe("denied");
    expect(await failing(store.head("link", call()))).toBe("not_found");
    await store.delete(["link"], call());
    await store.put(".persisto-objects/lock.sqlite", bytesOf(7), call());
    expect(await keysOf(store, "")).toEqual([".persisto-objects/lock.sqlite", "a"]);
    expect(existsSync(join(outside, "secret"))).toBe(true);
    await store.close();
  });

  it("refuses a name that would be an object and a folder", async () => {
    const store = await open(temporaryFolder());
    await store.put("a/b", bytesOf(1), call());
    expect(await failing(store.put("a", bytesOf(1), call()))).toBe("denied");
    expect(await failing(store.put("a", bytesOf(1), { ...call(), condition: { ifNoneMatch: "*" } }))).toBe("denied");
    expect(await failing(store.put("a/b/c", bytesOf(1), call()))).toBe("denied");
    expect(await failing(store.put("a/b/c", bytesOf(1), { ...call(), condition: { ifNoneMatch: "*" } }))).toBe(
      "denied",
    );
    await store.delete(["a", "a/b/c"], call());
    expect(await keysOf(store, "")).toEqual(["a/b"]);
    await store.close();
  });

  it("removes folders that become empty, also while others put into them", async () => {
    const path = temporaryFolder();
    const [one, other] = [await open(path), await open(path)];
    await one.put("db/ltx/0/a", bytesOf(1), call());
    await one.delete(["db/ltx/0/a"], call());
    expect(readdirSync(path)).toEqual([".persisto-objects"]);
    const churn = async (store: typeof one, name: string) => {
      for (let round = 0; round < 60; round++) {
        await store.put(`db/ltx/0/${name}`, bytesOf(1), { ...call(), condition: { ifNoneMatch: "*" } });
        await store.delete([`db/ltx/0/${name}`], call());
      }
      await store.put(`db/ltx/0/${name}`, bytesOf(1), call());
    };
    await Promise.all([churn(one, "a"), churn(other, "b")]);
    expect(await keysOf(one, "")).toEqual(["db/ltx/0/a", "db/ltx/0/b"]);
    await Promise.all([one.close(), other.close()]);
  });

  it("sweeps what processes that died have left, and nothing younger", async () => {
    const path = temporaryFolder();
    const store = await open(path);
    await store.put("a", bytesOf(1), call());
    await store.close();
    const temporary = join(path, ".persisto-objects", "new");
    writeFileSync(join(temporary, "half"), bytesOf(10));
    const later = await open(path);
    expect(readdirSync(temporary)).toEqual(["half"]);
    await later.close();
    await until("some time has passed", async () => {
      const last = await open(path, { leftoverMs: 1 });
      await last.close();
      return readdirSync(temporary).length === 0;
    });
  });

  it("rejects when it cannot be used", async () => {
    const path = join(temporaryFolder(), "file");
    writeFileSync(path, "");
    expect(await failing(open(join(path, "store")))).toBe("denied");
    expect(await failing(open(path))).toBe("denied");
  });

  it("counts right and gives each key once, whichever process asks", async () => {
    const path = temporaryFolder();
    const store = await open(path);
    await store.put("counter", Buffer.from('{"count":0}'), call());
    const children = Array.from({ length: 3 }, () => startProcess("count", path));
    const claims = await Promise.all(
      children.map(async (child) => {
        const [output] = await Promise.all([text(child.stdout!), once(child, "exit")]);
        return JSON.parse(output) as string[];
      }),
    );
    const { bytes } = await store.get("counter", { ...call(), bytesMax: 1000 });
    expect(JSON.parse(Buffer.from(bytes).toString()).count).toBe(180);
    expect(claims.flat().sort()).toEqual(Array.from({ length: 60 }, (_, index) => `claims/${index}`).sort());
    await store.close();
  });

  it("has whole objects, and all that were answered, after a process is killed", async () => {
    const path = temporaryFolder();
    const answered = new Map<string, string>();
    for (let kill = 0; kill < 4; kill++) {
      const child = startProcess("write", path);
      let output = "";
      child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
        output += chunk;
      });
      await until("it has written", () => output.length > 2000 + kill * 777, 15_000);
      const ended = once(child, "close");
      child.kill("SIGKILL");
      await ended;
      for (const line of output.split("\n").slice(0, -1)) {
        const { key, etag } = JSON.parse(line) as { key: string; etag: string };
        answered.set(key, etag);
      }
    }
    const store = await open(path);
    const found = new Set<string>();
    for await (const { key } of store.list("written/", call())) {
      const { bytes } = await store.get(key, { ...call(), bytesMax: 10_000_000 });
      const body = bytes.subarray(0, -32);
      expect(createHash("sha256").update(body).digest().equals(bytes.subarray(-32))).toBe(true);
      found.add(key);
    }
    expect([...answered.keys()].filter((key) => !found.has(key))).toEqual([]);
    await store.put("written/after", bytesOf(1), { ...call(), condition: { ifNoneMatch: "*" } });
    await store.close();
  });
});
