import { describe, expect, it } from "vitest";
import {
  activePin,
  decide,
  type PlacementFacts,
  type PolicySettings,
  type Tiers,
  worth,
} from "../../../src/engine/placement/policy.ts";
import { RequestCount } from "../../../src/engine/placement/usage.ts";

const settings: PolicySettings = {
  autoMovement: true,
  timeoutMs: 300_000,
  requestCountThreshold: 3,
  requestWindowMs: 60_000,
  cooldownMs: 60_000,
};
const all: Tiers = { hasMemory: true, carriesToRemote: true };
const nowMs = Date.UTC(2030, 0, 1);
const calm: PlacementFacts = {
  stage: "local",
  head: "local",
  pin: undefined,
  requestCount: 1,
  idleMs: 10_000,
  sinceMoveMs: Number.POSITIVE_INFINITY,
};
const idle = { idleMs: 300_000, requestCount: 0 };

interface Row {
  readonly name: string;
  readonly facts: Partial<PlacementFacts>;
  readonly settings?: Partial<PolicySettings>;
  readonly tiers?: Partial<Tiers>;
  readonly target: string;
  readonly dropsHead?: boolean;
  readonly reason: string;
}

const remote = { stage: "remote", head: "local" } as const;
const table: readonly Row[] = [
  {
    name: "in use",
    facts: {},
    target: "local",
    reason: "It is in use on the local stage: the last call was 10 s ago, and 5 min without one would move it farther.",
  },
  {
    name: "one call below the threshold",
    facts: { requestCount: 2 },
    target: "local",
    reason: "It is in use on the local stage: the last call was 10 s ago, and 5 min without one would move it farther.",
  },
  {
    name: "at the threshold",
    facts: { requestCount: 3 },
    target: "memory",
    reason: "It moves to the memory stage: 3 calls within 60 s, and 3 are enough.",
  },
  {
    name: "at a threshold of one",
    facts: { requestCount: 1 },
    settings: { requestCountThreshold: 1 },
    target: "memory",
    reason: "It moves to the memory stage: 1 call within 60 s, and 1 are enough.",
  },
  {
    name: "busy without a memory stage",
    facts: { requestCount: 1000 },
    tiers: { hasMemory: false },
    target: "local",
    reason: "It is in use on the local stage: the last call was 10 s ago, and 5 min without one would move it farther.",
  },
  {
    name: "busy on the closest stage",
    facts: { stage: "memory", head: "memory", requestCount: 1000, idleMs: 0 },
    target: "memory",
    reason: "It is in use on the memory stage: the last call was 0 s ago, and 5 min without one would move it farther.",
  },
  {
    name: "one millisecond before the timeout",
    facts: { ...idle, idleMs: 299_999 },
    target: "local",
    reason:
      "It is in use on the local stage: the last call was 4 min ago, and 5 min without one would move it farther.",
  },
  {
    name: "at the timeout",
    facts: idle,
    target: "remote",
    reason: "It moves to the remote stage: no call for 5 min, and 5 min are enough.",
  },
  {
    name: "at the timeout in memory",
    facts: { ...idle, stage: "memory", head: "memory" },
    target: "local",
    reason: "It moves to the local stage: no call for 5 min, and 5 min are enough.",
  },
  {
    name: "idle where nothing is carried to the remote stage",
    facts: { ...idle, idleMs: 7_200_000 },
    tiers: { carriesToRemote: false },
    target: "local",
    reason: "It is on the local stage, and there is no farther one to move to: no call for 2 h.",
  },
  {
    name: "many calls, and none for long",
    facts: { requestCount: 3, idleMs: 300_000 },
    target: "memory",
    reason: "It moves to the memory stage: 3 calls within 60 s, and 3 are enough.",
  },
  {
    name: "remote and called once",
    facts: { ...remote },
    target: "remote",
    reason:
      "It lives on the remote stage: the last call was 10 s ago, with 1 of the 3 calls within 60 s that would move it closer.",
  },
  {
    name: "remote and called often",
    facts: { ...remote, requestCount: 3 },
    target: "local",
    reason: "It moves to the local stage: 3 calls within 60 s, and 3 are enough.",
  },
  {
    name: "remote with a head that nobody uses",
    facts: { ...remote, ...idle },
    target: "remote",
    dropsHead: true,
    reason: "It lives on the remote stage and leaves the local disk: no call for 5 min, and 5 min are enough.",
  },
  {
    name: "remote and idle for long",
    facts: { stage: "remote", head: "none", idleMs: 400 * 86_400_000, requestCount: 0 },
    target: "remote",
    reason: "It is on the remote stage: no call for 400 days.",
  },
  {
    name: "moved a moment ago, and busy",
    facts: { requestCount: 1000, sinceMoveMs: 59_999 },
    target: "local",
    reason: "It was moved to the local stage 59 s ago, and rests there for 60 s after a move.",
  },
  {
    name: "moved a moment ago, and idle",
    facts: { ...idle, sinceMoveMs: 0 },
    target: "local",
    reason: "It was moved to the local stage 0 s ago, and rests there for 60 s after a move.",
  },
  {
    name: "at the end of the cool-down",
    facts: { ...idle, sinceMoveMs: 60_000 },
    target: "remote",
    reason: "It moves to the remote stage: no call for 5 min, and 5 min are enough.",
  },
  {
    name: "busy with movement off",
    facts: { requestCount: 1000 },
    settings: { autoMovement: false },
    target: "local",
    reason: "It is on the local stage because it was created or moved there; automatic movement is off.",
  },
  {
    name: "idle with movement off",
    facts: { ...remote, ...idle },
    settings: { autoMovement: false },
    target: "remote",
    reason: "It is on the remote stage because it was created or moved there; automatic movement is off.",
  },
  {
    name: "pinned where it is, and idle",
    facts: { ...idle, stage: "memory", head: "memory", pin: { stage: "memory", expireTimeMs: undefined } },
    target: "memory",
    reason: "It is pinned to the memory stage until it is unpinned.",
  },
  {
    name: "pinned elsewhere, with movement off, a moment after a move",
    facts: { sinceMoveMs: 0, pin: { stage: "memory", expireTimeMs: nowMs + 1 } },
    settings: { autoMovement: false },
    target: "memory",
    reason: "It is pinned to the memory stage until 2030-01-01T00:00:00Z.",
  },
  {
    name: "pinned farther, and busy",
    facts: { requestCount: 1000, pin: { stage: "remote", expireTimeMs: undefined } },
    target: "remote",
    reason: "It is pinned to the remote stage until it is unpinned.",
  },
  {
    name: "pinned to the remote stage with a head in use",
    facts: { ...remote, pin: { stage: "remote", expireTimeMs: undefined } },
    target: "remote",
    reason: "It is pinned to the remote stage until it is unpinned.",
  },
  {
    name: "pinned to the remote stage with an idle head",
    facts: { ...remote, ...idle, pin: { stage: "remote", expireTimeMs: undefined } },
    target: "remote",
    dropsHead: true,
    reason: "It is pinned to the remote stage until it is unpinned.",
  },
  {
    name: "pinned until now, and idle",
    facts: { ...idle, pin: { stage: "local", expireTimeMs: nowMs } },
    target: "remote",
    reason: "It moves to the remote stage: no call for 5 min, and 5 min are enough.",
  },
  {
    name: "pinned to a stage that is not there any more",
    facts: { pin: { stage: "memory", expireTimeMs: undefined } },
    tiers: { hasMemory: false },
    target: "local",
    reason: "It is pinned to the memory stage until it is unpinned, and this server has none; it stays on local.",
  },
];

describe("decide", () => {
  it.each(table)("$name → $target", ({ facts, settings: set, tiers, target, dropsHead = false, reason }) => {
    const decision = decide({ ...calm, ...facts }, { ...settings, ...set }, { ...all, ...tiers }, nowMs);
    expect(decision).toEqual({ target, dropsHead, reason });
  });

  it("says one sentence whatever it decides", () => {
    const reasons = table.map((row) => {
      return decide({ ...calm, ...row.facts }, { ...settings, ...row.settings }, { ...all, ...row.tiers }, nowMs)
        .reason;
    });
    for (const reason of reasons) expect(reason).toMatch(/^[A-Z][^.]*\.$/);
  });

  it("never moves further than one stage by itself, and never within the cool-down", () => {
    const order = ["memory", "local", "remote"];
    for (const stage of ["memory", "local", "remote"] as const) {
      for (const requestCount of [0, 2, 3, 100]) {
        for (const idleMs of [0, 299_999, 300_000, 1e9]) {
          for (const sinceMoveMs of [0, 59_999, 60_000, 1e9]) {
            const head = stage === "memory" ? "memory" : "local";
            const decision = decide({ ...calm, stage, head, requestCount, idleMs, sinceMoveMs }, settings, all, nowMs);
            expect(Math.abs(order.indexOf(decision.target) - order.indexOf(stage))).toBeLessThanOrEqual(1);
            if (sinceMoveMs < 60_000) expect(decision).toMatchObject({ target: stage, dropsHead: false });
          }
        }
      }
    }
  });
});

describe("a pin", () => {
  it.each([
    ["none", undefined, false],
    ["without an end", { stage: "local", expireTimeMs: undefined }, true],
    ["that ends later", { stage: "local", expireTimeMs: nowMs + 1 }, true],
    ["that ends now", { stage: "local", expireTimeMs: nowMs }, false],
  ] as const)("%s holds: %s %s", (_, pin, holds) => {
    expect(activePin(pin, nowMs) !== undefined).toBe(holds);
  });
});

describe("worth", () => {
  const one = { requestCount: 2, idleMs: 30_000, sizeBytes: 1024 * 1024 };
  it.each([
    ["more calls", { requestCount: 3 }],
    ["a more recent call", { idleMs: 29_000 }],
    ["fewer bytes", { sizeBytes: 1000 * 1024 }],
  ])("is greater with %s", (_, change) => {
    expect(worth({ ...one, ...change }, 60_000)).toBeGreaterThan(worth(one, 60_000));
  });

  it("does not tell tiny databases apart by their size", () => {
    expect(worth({ ...one, sizeBytes: 4096 }, 60_000)).toBe(worth({ ...one, sizeBytes: 8192 }, 60_000));
  });
});

describe("a count of requests", () => {
  it("holds those of the last window", () => {
    const count = new RequestCount(60_000);
    expect(count.count(0)).toBe(0);
    expect(count.add(1000)).toBe(1);
    expect(count.add(2000)).toBe(2);
    expect(count.add(60_999)).toBe(3);
    expect(count.count(60_999)).toBe(3);
  });

  it("lets the window before fade, and forgets all that are older", () => {
    const count = new RequestCount(60_000);
    for (let call = 0; call < 100; call++) count.add(0);
    expect(count.count(59_999)).toBe(100);
    expect(count.count(60_000)).toBe(100);
    expect(count.count(90_000)).toBe(50);
    expect(count.add(105_000)).toBe(26);
    expect(count.count(119_999)).toBe(1);
    expect(count.count(179_999)).toBe(0);
    expect(count.count(500_000)).toBe(0);
    expect(count.add(500_001)).toBe(1);
  });

  it("counts calls close together as one window, however long ago the last one was", () => {
    const count = new RequestCount(60_000);
    count.add(0);
    count.add(1_000_050);
    expect(count.add(1_060_049)).toBe(2);
  });
});
