/** One of several processes that use one folder: counts up in it, or writes until it is killed. */
import { createHash, randomBytes } from "node:crypto";
import { argv } from "node:process";
import { systemClock } from "../../src/clock.ts";
import { openDirectoryStore } from "../../src/objects/directory.ts";
import { isObjectStoreError } from "../../src/objects/object-store.ts";
import { call } from "./helpers.ts";

const [, , mode = "", path = ""] = argv;
// The clock's timers alone do not: waiting for the lock would end the program.
const alive = setInterval(() => undefined, 60_000);
const store = await openDirectoryStore({ path, clock: systemClock, random: randomBytes });

/** As an object's own proof: its bytes, then their hash. */
function proven(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, createHash("sha256").update(bytes).digest()]);
}

async function count(key: string, rounds: number): Promise<void> {
  for (let round = 0; round < rounds; ) {
    const { info, bytes } = await store.get(key, { ...call(), bytesMax: 1000 });
    const next = JSON.stringify({ count: JSON.parse(Buffer.from(bytes).toString()).count + 1, by: process.pid, round });
    try {
      await store.put(key, Buffer.from(next), { ...call(), condition: { ifMatch: info.etag } });
      round++;
    } catch (error) {
      if (!isObjectStoreError(error, "precondition")) throw error;
    }
  }
}

async function claim(keyCount: number): Promise<string[]> {
  const won: string[] = [];
  for (let index = 0; index < keyCount; index++) {
    const key = `claims/${index}`;
    try {
      await store.put(key, Buffer.from(String(process.pid)), { ...call(), condition: { ifNoneMatch: "*" } });
      won.push(key);
    } catch (error) {
      if (!isObjectStoreError(error, "precondition")) throw error;
    }
  }
  return won;
}

/** Puts and replaces for ever; says what was answered. */
async function write(): Promise<never> {
  for (let index = 0; ; index++) {
    const key = `written/${index % 50}/${index % 7}`;
    const { etag } = await store.put(key, proven(randomBytes(1 + (index % 5) * 300_000)), call());
    process.stdout.write(`${JSON.stringify({ key, etag })}\n`);
  }
}

if (mode === "count") {
  await count("counter", 60);
  process.stdout.write(`${JSON.stringify(await claim(60))}\n`);
  await store.close();
  clearInterval(alive);
} else {
  await write();
}
