import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../src/clock.ts";
import { ObjectStoreError } from "../../src/objects/object-store.ts";
import { openS3Store } from "../../src/objects/s3.ts";
import type { S3StoreOptions } from "../../src/objects/s3-connection.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { describeObjectStore } from "./contract.ts";
import { call } from "./helpers.ts";
import {
  accessKeyId,
  bucket,
  installed,
  type S3Server,
  s3ServerKinds,
  secretAccessKey,
  startS3Server,
} from "./s3-servers.ts";

const temporaryFolder = temporaryFolders();
const partBytes = 5 * 1024 * 1024;

for (const kind of s3ServerKinds) {
  const isMissing = installed(kind) === undefined;
  const note = isMissing ? ` (skipped: ${kind.program} is not installed)` : "";

  describe.skipIf(isMissing)(`${kind.name}${note}`, () => {
    let server: S3Server;

    beforeAll(async () => {
      server = await startS3Server(kind, temporaryFolder());
    }, 40_000);
    afterAll(() => server?.stop());

    const open = (options: Partial<S3StoreOptions> = {}) =>
      openS3Store({
        bucket,
        endpoint: server.endpoint,
        region: "auto",
        accessKeyId,
        secretAccessKey,
        clock: systemClock,
        random: randomBytes,
        limits: { partBytes, listPageCount: 100 },
        ...options,
      });
    const probing = async (options: Partial<S3StoreOptions>) => {
      const store = await open(options);
      try {
        await store.probe(call(4000));
        return undefined;
      } catch (error) {
        if (!(error instanceof ObjectStoreError)) throw error;
        return error;
      } finally {
        await store.close();
      }
    };

    if (kind.hasConditions) describeObjectStore("S3", { open, partBytes });

    it.skipIf(kind.hasConditions)("is refused: it has no conditional puts", async () => {
      const error = await probing({});
      expect([error?.missing, error?.message]).toEqual(["conditional_put", expect.stringContaining("If-None-Match")]);
    });

    it.skipIf(kind.makesBuckets)("is told from one that lacks the bucket", async () => {
      const error = await probing({ bucket: "no-such-bucket" });
      expect([error?.missing, error?.message]).toEqual([
        "bucket",
        expect.stringContaining("the bucket does not exist"),
      ]);
    });

    it.skipIf(!kind.checksSecrets)("is told from one that does not know the key", async () => {
      expect((await probing({ secretAccessKey: "wrong" }))?.missing).toMatch(/^(credentials|permission)$/);
      expect((await probing({ accessKeyId: "nobody" }))?.missing).toMatch(/^(credentials|permission)$/);
    });

    it("is told from one that is not there", async () => {
      const error = await probing({ endpoint: "http://127.0.0.1:1", limits: { attemptCountMax: 2 } });
      expect([error?.kind, error?.missing]).toEqual(["unavailable", "endpoint"]);
    });
  });
}
