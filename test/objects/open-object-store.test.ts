import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { isBucket, openObjectStore } from "../../src/objects/open-object-store.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";

const temporaryFolder = temporaryFolders();
const options = { clock: systemClock, random: randomBytes };
const place = (directoryPath: string) => ({ bucket: "sqlite-databases", region: "auto", directoryPath });

it("is a folder unless a bucket is chosen", async () => {
  const path = join(temporaryFolder(), "remote");
  expect(isBucket(place(path))).toBe(false);
  const { store, layout } = await openObjectStore(place(path), options);
  expect([layout, store.name, existsSync(path)]).toEqual(["folder", `folder ${path}`, true]);
  await store.close();
});

it.each([{ endpoint: "http://127.0.0.1:1" }, { accessKeyId: "key", secretAccessKey: "secret" }])(
  "is a bucket when %o is set, and makes no folder",
  async (chosen) => {
    const path = join(temporaryFolder(), "remote");
    expect(isBucket({ ...place(path), ...chosen })).toBe(true);
    const { store, layout } = await openObjectStore({ ...place(path), ...chosen, region: "us-east-1" }, options);
    expect([layout, existsSync(path)]).toEqual(["bucket", false]);
    expect(store.name).toContain("bucket sqlite-databases at ");
    await store.close();
  },
);
