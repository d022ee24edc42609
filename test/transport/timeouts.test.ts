import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { formatGrpcTimeout, parseConnectTimeout, parseGrpcTimeout } from "../../src/transport/timeouts.ts";

describe("grpc-timeout", () => {
  it.each([
    ["1H", 3_600_000],
    ["2M", 120_000],
    ["3S", 3_000],
    ["4m", 4],
    ["5u", 0.005],
    ["6n", 0.000_006],
    ["0m", 0],
  ])("reads %s", (value, ms) => {
    expect(parseGrpcTimeout(value, 1e9)?.ms).toBeCloseTo(ms, 9);
    expect(parseGrpcTimeout(value, 1e9)?.clamped).toBe(false);
  });

  it("cuts what is longer than allowed, or than a timer can hold", () => {
    expect(parseGrpcTimeout("99999999H", 300_000)).toEqual({ ms: 300_000, clamped: true });
    expect(parseGrpcTimeout("99999999H", Number.MAX_VALUE)).toEqual({ ms: 2 ** 31 - 1, clamped: true });
  });

  it.each(["", "1", "H", "-1S", "1.5S", "100000000m", "1 S", "1h"])("refuses %j", (value) => {
    expect(() => parseGrpcTimeout(value, 1e9)).toThrow(expect.objectContaining({ code: Code.InvalidArgument }));
  });

  it("is written so that it is never longer", () => {
    expect(formatGrpcTimeout(300_000.9)).toBe("300000m");
    expect(formatGrpcTimeout(2 ** 31 - 1)).toBe("2147483S");
  });
});

describe("connect-timeout-ms", () => {
  it("is read and cut", () => {
    expect(parseConnectTimeout("1500", 300_000)).toEqual({ ms: 1_500, clamped: false });
    expect(parseConnectTimeout("9999999999", 300_000)).toEqual({ ms: 300_000, clamped: true });
    expect(parseConnectTimeout(undefined, 300_000)).toBeUndefined();
  });

  it.each(["", "-1", "1.5", "12345678901", "1s"])("refuses %j", (value) => {
    expect(() => parseConnectTimeout(value, 1e9)).toThrow(expect.objectContaining({ code: Code.InvalidArgument }));
  });
});
