/** Servers that are broken on purpose: a judge that does not notice them proves nothing about the others. */
import { describe, expect, it } from "vitest";
import { simulate } from "./simulate.ts";
import { answersBeforeFlush, deletesBeforeVerify, losesObjects, uploadsWithoutCondition } from "./variants.ts";

const timeout = 120_000;

describe("a broken server is found out that", () => {
  it("answers before it has flushed", { timeout }, async () => {
    const { problems } = await simulate({
      firstSeed: 1,
      scheduleCount: 100,
      variant: answersBeforeFlush,
      problemsMax: 3,
    });
    expect(problems).toHaveLength(3);
  });

  it("deletes before it has verified", { timeout }, async () => {
    const { problems } = await simulate({
      firstSeed: 1,
      scheduleCount: 300,
      variant: deletesBeforeVerify,
      problemsMax: 1,
    });
    expect(problems).toHaveLength(1);
  });

  it("uploads without a condition", { timeout }, async () => {
    const { problems } = await simulate({
      firstSeed: 1,
      scheduleCount: 300,
      variant: uploadsWithoutCondition,
      problemsMax: 1,
    });
    expect(problems).toHaveLength(1);
  });
});

it("a server that verifies loses nothing by a bucket that does", { timeout }, async () => {
  const { problems } = await simulate({ firstSeed: 1, scheduleCount: 100, variant: losesObjects });
  expect(problems).toEqual([]);
});
