import { describe, expect, it } from "vitest";
import { type Job, Lane } from "../../../src/engine/sync/lane.ts";

function scene(countMax: number) {
  const begun: string[] = [];
  const problems: unknown[] = [];
  const ends = new Map<string, PromiseWithResolvers<void>>();
  const state = { mayBegin: true };
  const lane = new Lane({ countMax, mayBegin: () => state.mayBegin, onProblem: (error) => problems.push(error) });
  const job = (name: string, ended?: () => void): Job => ({
    run: () => {
      begun.push(name);
      const end = Promise.withResolvers<void>();
      ends.set(name, end);
      return end.promise;
    },
    ended,
  });
  const end = async (name: string, error?: Error) => {
    const waiting = ends.get(name);
    if (error === undefined) waiting?.resolve();
    else waiting?.reject(error);
    await new Promise(setImmediate);
  };
  return { lane, begun, problems, state, job, end };
}

describe("a lane", () => {
  it("runs as many jobs as it has places, and lets those forward for whom somebody waits", async () => {
    const { lane, begun, job, end } = scene(2);
    const late = job("late");
    for (const name of ["a", "b", "c", "d"]) lane.add(job(name), false);
    lane.add(late, false);
    lane.add(late, true);
    expect(begun).toEqual(["a", "b"]);
    expect(lane.waitingCount).toBe(3);
    await end("a");
    expect(begun).toEqual(["a", "b", "late"]);
    await end("late");
    await end("b");
    expect(begun).toEqual(["a", "b", "late", "c", "d"]);
  });

  it("holds back while it may not begin", async () => {
    const { lane, begun, state, job, end } = scene(2);
    state.mayBegin = false;
    lane.add(job("a"), true);
    expect(begun).toEqual([]);
    state.mayBegin = true;
    lane.pump();
    expect(begun).toEqual(["a"]);
    await end("a");
    await lane.whenIdle();
  });

  it("goes on after a job that fails, and tells of it", async () => {
    const { lane, begun, problems, job, end } = scene(1);
    lane.add(job("a"), false);
    lane.add(job("b"), false);
    await end("a", new Error("broken"));
    expect(begun).toEqual(["a", "b"]);
    expect(problems).toEqual([new Error("broken")]);
    await end("b");
    await lane.whenEmpty();
  });

  it("lets a job come again when it has ended", async () => {
    const { lane, begun, job, end } = scene(1);
    let rounds = 0;
    const again: Job = job("again", () => {
      if (++rounds < 3) lane.add(again, false);
    });
    lane.add(again, false);
    lane.add(job("other"), false);
    for (const name of ["again", "other", "again", "again"]) await end(name);
    expect(begun).toEqual(["again", "other", "again", "again"]);
    await lane.whenEmpty();
  });
});
