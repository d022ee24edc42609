/** Random lives of a server, judged by a model. A failure names its seed: npm run simulate -- --seed N --verbose. */
import { describe, expect, it } from "vitest";
import { failPoints } from "../../src/fail-points.ts";
import { simulate } from "./simulate.ts";

describe("a simulated server", () => {
  it("keeps what it promised, whatever dies", { timeout: 300_000 }, async () => {
    const { problems, reached } = await simulate({ firstSeed: 1, scheduleCount: 500 });
    expect(problems).toEqual([]);
    expect(failPoints.filter((point) => !reached.has(point))).toEqual([]);
  });

  it("does the same for the same seed", { timeout: 60_000 }, async () => {
    const first = await simulate({ firstSeed: 1, scheduleCount: 10 });
    expect(await simulate({ firstSeed: 1, scheduleCount: 10 })).toMatchObject({ digests: first.digests });
  });
});
