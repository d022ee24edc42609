import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/health/v1/health_pb.js";
import { HealthState } from "../../src/api/health.ts";

describe("HealthState", () => {
  it("tells each change once, and nothing twice", async () => {
    const state = new HealthState(["a"]);
    const ending = new AbortController();
    const told: ServingStatus[] = [];
    for await (const status of state.watch("a", ending.signal)) {
      told.push(status);
      if (told.length === 1) {
        state.setServing(false);
        state.setServing(true);
      } else if (told.length === 2) {
        state.setServing(true);
        state.setServing(false);
      } else {
        break;
      }
    }
    expect(told).toEqual([ServingStatus.NOT_SERVING, ServingStatus.SERVING, ServingStatus.NOT_SERVING]);
  });

  it("ends a watch that waits, by the signal's reason", async () => {
    const state = new HealthState([]);
    const ending = new AbortController();
    const watch = state.watch("", ending.signal);
    expect((await watch.next()).value).toBe(ServingStatus.NOT_SERVING);
    const waiting = watch.next();
    ending.abort(new ConnectError("gone", Code.Canceled));
    await expect(waiting).rejects.toMatchObject({ code: Code.Canceled });
  });

  it("ends watches at the server's end, when they have told the last change", async () => {
    const state = new HealthState([]);
    state.setServing(true);
    const { signal } = new AbortController();
    const watch = state.watch("", signal);
    expect((await watch.next()).value).toBe(ServingStatus.SERVING);
    const waiting = watch.next();
    state.setServing(false);
    state.end();
    expect((await waiting).value).toBe(ServingStatus.NOT_SERVING);
    await expect(watch.next()).rejects.toMatchObject({ reason: "SHUTTING_DOWN" });
  });

  it("has room for a thousand watchers, and again for one when one leaves", async () => {
    const state = new HealthState([]);
    const { signal } = new AbortController();
    const watches = Array.from({ length: 1000 }, () => state.watch("", signal));
    await Promise.all(watches.map((watch) => watch.next()));
    await expect(state.watch("", signal).next()).rejects.toMatchObject({ code: Code.ResourceExhausted });
    await watches[0]?.return(undefined);
    expect((await state.watch("", signal).next()).value).toBe(ServingStatus.NOT_SERVING);
  });
});
