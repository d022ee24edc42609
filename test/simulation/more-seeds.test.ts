/** The same with other seeds, beside the first ones. */
import { expect, it } from "vitest";
import { simulate } from "./simulate.ts";

it("a simulated server keeps what it promised, with more seeds", { timeout: 300_000 }, async () => {
  const { problems } = await simulate({ firstSeed: 10_001, scheduleCount: 500 });
  expect(problems).toEqual([]);
});
