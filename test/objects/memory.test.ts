import { systemClock } from "../../src/clock.ts";
import { type MemoryBucket, MemoryObjectStore } from "../support/memory-object-store.ts";
import { describeObjectStore } from "./contract.ts";

const bucket: MemoryBucket = new Map();
describeObjectStore("memory", { open: async () => new MemoryObjectStore(systemClock, bucket) });
