import { describe, expect, it } from "vitest";
import { type Due, Timetable } from "../../../src/engine/sync/timetable.ts";
import { CountingClock, ManualClock } from "../../support/manual-clock.ts";

function scene() {
  const manual = new ManualClock();
  const clock = new CountingClock(manual);
  const timetable = new Timetable(clock);
  const ran: string[] = [];
  const due = (name: string): Due => ({ dueAtMs: 0, place: -1, run: () => ran.push(`${name}@${manual.now()}`) });
  return { manual, clock, timetable, ran, due };
}

describe("the timetable", () => {
  it("runs everything in the order of its time, whatever the order it came in", () => {
    const { manual, timetable, ran } = scene();
    const times = Array.from({ length: 500 }, (_, index) => ((index * 7919) % 500) * 10);
    for (const atMs of times) timetable.set({ dueAtMs: 0, place: -1, run: () => ran.push(String(atMs)) }, atMs);
    manual.advance(10_000);
    expect(ran.map(Number)).toEqual([...times].sort((a, b) => a - b));
    expect(timetable.size).toBe(0);
  });

  it("holds one timer for all, and none when nothing is due", () => {
    const { manual, clock, timetable, due } = scene();
    expect(clock.timerCount).toBe(0);
    const dues = Array.from({ length: 100 }, (_, index) => due(String(index)));
    for (const [index, each] of dues.entries()) timetable.set(each, 1_000 + index * 1_000);
    expect(clock.timerCount).toBe(1);
    manual.advance(50_500);
    expect(clock.timerCount).toBe(1);
    for (const each of dues) timetable.remove(each);
    expect(clock.timerCount).toBe(0);
  });

  it("moves what is due to another time, and removes it", () => {
    const { manual, timetable, ran, due } = scene();
    const [first, second, third] = [due("first"), due("second"), due("third")];
    timetable.set(first, 100);
    timetable.set(second, 200);
    timetable.set(third, 300);
    timetable.set(first, 400);
    timetable.setBy(third, 350);
    timetable.remove(second);
    timetable.remove(second);
    manual.advance(1_000);
    expect(ran).toEqual(["third@300", "first@400"]);
  });

  it("does not run again in the same round what makes itself due at once", () => {
    const { manual, timetable } = scene();
    let runs = 0;
    const again: Due = {
      dueAtMs: 0,
      place: -1,
      run: () => {
        runs++;
        if (runs < 5) timetable.set(again, manual.now());
      },
    };
    timetable.set(again, 10);
    manual.advance(10);
    expect(runs).toBeGreaterThan(0);
    manual.advance(100);
    expect(runs).toBe(5);
  });
});
