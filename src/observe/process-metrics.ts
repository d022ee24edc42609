/** Figures of the process itself. A module of its own, so that it is loaded at the first reading only. */
import { collectDefaultMetrics, Registry } from "prom-client";

export function readProcess(): { metrics(): Promise<string> } {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  return registry;
}
